"""The report of an analysis: one document, written as HTML, Markdown and JSON."""
