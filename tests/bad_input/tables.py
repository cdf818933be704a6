"""Tables of scores that are no such tables, and options that do not fit them."""

import json

from bad_input.row import Row

HEAD = "backbone,optimizer,score\n"
ANALYZE = ("analyze", "t", "--no-report", "--resamples", "10")
# Content of a file, and what the sentence says; options after the words.
TABLES: dict[str, tuple[str | bytes, str, tuple[str, ...]]] = {
    "blank": ("", "holds no score: it needs a line of names", ()),
    "header": (HEAD, "holds no score", ()),
    "diverged": (HEAD + "a,sgd,diverged\n", "holds no score", ()),
    "text": (HEAD + "a,sgd,good\n", "Line 2: the score 'good' is not a number", ()),
    "percent": (HEAD + "a,sgd,700\n", "line 2: an accuracy is between 0 and 100.*--metric", ()),
    "negative": (HEAD + "a,sgd,-1\n", "line 2: an accuracy is between 0 and 100", ()),
    "infinite": (HEAD + "a,sgd,inf\n", "Line 2: the score is infinite", ()),
    "large": (HEAD + "a,sgd,1e200\n", "the score is too large", ("--metric", "speed")),
    "nameless": (HEAD + ",sgd,70\n", "Line 2 names no backbone", ()),
    "escape": (HEAD + "a\x1b[2J,sgd,70\n", "name of the backbone is not printable text", ()),
    "nul": ("optimizer,vit\nsgd\0,70\n", "name of the optimizer is not printable text", ()),
    "latin": ("optimizer,\xe9\nsgd,1\n".encode("latin-1"), "is not text in UTF-8", ()),
    "ragged": ("optimizer,a,b\nsgd,70,1,71,2\n", "If commas are decimal, separate", ()),
    "repeated": ("backbone,optimizer,seed,score\na,sgd,0,1\na,sgd,0,2\n", "repeats line 2", ()),
    "epochs": ("model,optimizer,epoch,acc\na,sgd,1,7\na,sgd,2,8\n", "a row per epoch of each", ()),
    "axes": (",x,y\nfoo,70,71\n", "give --optimizer-column '', else --backbone-column ''", ()),
    "column": (HEAD + "a,sgd,70\n", "--score-column is 'acc', but '.*t' has no such column",
               ("--score-column", "acc")),
    "twice": (HEAD + "a,sgd,70\n", "which is given for something else too",
              ("--backbone-column", "score", "--score-column", "score")),
    "loss": ("model,optimizer,test_error\na,sgd,5\n", "--metric 'test_error'", ()),
    "datasets": ("model,optimizer,acc,dataset\na,sgd,7,x\na,sgd,8,y\n", "on 2 datasets: x, y", ()),
    "dataset": ("model,optimizer,acc,dataset\na,sgd,7,x\n", "No run is on 'y'. There are: x",
                ("--dataset", "y")),
    "status": ("model,optimizer,acc,status\na,sgd,7,blue\n", "there is no status 'blue'", ()),
    "metric": (HEAD + "a,sgd,70\n", "Give --score or --metric, not both",
               ("--metric", "AP", "--score", "loss")),
    "ratio": (HEAD + "a,sgd,-7\n", "Ratios need positive scores, and a speed is -7",
              ("--metric", "speed", "--relative", "yes")),
    "thousands": ("optimizer;a\nsgd;1,234\n", "'1,234' may be a decimal number", ("--metric", "x")),
    "json": ("[1, 2]", "no list of records", ()),
    "deep": ("[" * 100_000, "nested too deeply", ()),
    "digits": ('[{"score": ' + "1" * 5000 + "}]", "not valid JSON", ()),
    "truth": (json.dumps([{"model": "a", "opt": "b", "acc": True}]), "the score 'True' is not", ()),
    "lines": ('{"a": 1}\n{"a": ', "line 2", ()),
    "excel": (b"PK\x03\x04", "is an archive or an Excel workbook", ()),
    "zipped": (b"\x1f\x8b", "is compressed; unpack it first", ()),
    "parquet": (b"PAR1", "is not a Parquet file", ()),
}  # fmt: skip

ROWS = [
    Row(f"table-{name}", [*ANALYZE, *options], says, files={"t": content})
    for name, (content, says, options) in TABLES.items()
]
