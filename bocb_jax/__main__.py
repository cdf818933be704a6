"""The `bocb` command: `bocb train`, `bocb sweep`, `bocb analyze`, `bocb models`, ..."""

import sys

USAGE = """usage: bocb COMMAND [options]

  train              train one backbone with one optimizer
  sweep STUDY        train all that a study names, and make a table of it
  analyze RUNS       which optimizer suits which backbone: figures, verdict and report
  recommend          which optimizer and rates to try first, and on what evidence
  probe              how strongly the optimizer binds a net of your own
  patterns           what trained weights look like, layer by layer: runs or files
  models [NAME]      the backbones, or all about one; patterns such as 'conv*' work
  optimizers [NAME]  the optimizers, or all about one; with --plot FILE, their paths as a picture
  bench              what things cost on this machine
  recipes            the training recipes side by side; with --check, beside the paper
  import-weights     a file of PyTorch weights to a folder that `train --init` takes
  export-weights     the best weights of a run to a file for PyTorch

`bocb COMMAND --help` says more. Also: python -m bocb_jax.train."""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    # Each door is imported when it is entered: most of them load JAX.
    if command == "train":
        from bocb_jax.train import main as door
    elif command == "sweep":
        from bocb_jax.sweep import main as door
    elif command == "analyze":
        from bocb_jax.analyze import main as door
    elif command == "recommend":
        from bocb_jax.commands.recommend import main as door
    elif command == "probe":
        from bocb_jax.commands.probe import main as door
    elif command == "patterns":
        from bocb_jax.commands.patterns import main as door
    elif command == "bench":
        from bocb_jax.bench.__main__ import main as door
    elif command in ("models", "optimizers"):
        from bocb_jax.commands.listing import main as listing

        def door(rest):
            return listing(command, rest)

    elif command in ("import-weights", "export-weights"):
        from bocb_jax.commands.weights import main as exchange

        def door(rest):
            return exchange(command, rest)

    elif command == "recipes":
        from bocb_jax.commands.listing import recipes as door
    elif command in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    else:
        print(f"There is no command '{command}'.\n\n{USAGE}", file=sys.stderr)
        return 2
    return door(rest)


if __name__ == "__main__":
    sys.exit(main())
