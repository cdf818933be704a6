"""Studies: their TOML file, the settings on the command line, and the options of a sweep."""

import re

from bad_input.row import Row

HEAD = 'backbones = ["vit_mini"]\noptimizers = ["sgd"]\n'
WHOLE, POSITIVE = "must be a whole number of at least", "must be a list, each a positive number"
DECIDED = "it must be without what the study itself decides"

# Lines after the names of backbones and optimizers, and what the sentence says.
TOML = [
    ("[train]\nepochs = 2.5", rf"In \[train\], epochs is 2.5; it {WHOLE} 1"),
    ("[train]\nepoch = 2", r"In \[train\], There is no setting epoch"),
    ("[train]\nbatch_size = 64.0", rf"In \[train\], batch_size is 64.0; it {WHOLE} 1"),
    ('[train]\nprecision = "float16"', "precision is 'float16'; it must be one of auto"),
    ('[train]\nprotocol = "Paper"', "protocol is 'Paper'; it must be one of held_out, paper"),
    ("[train]\nmodel_args = 3", "model_args is 3; it must be a table"),
    ('[train]\nstep.loss = "focal"', "step.loss is 'focal'; it must be one of cross_entropy"),
    ("[train]\nschedule.factor = inf", "train is .*; it must be a table of"),
    ("[train]\ndata.workers = -1", f"data.workers is -1; it {WHOLE} 0"),
    ("[train]\nlr = 0.1", f"train is 'lr'; {DECIDED}"),
    ("[train]\nseed = 1\ntest = true", f"train is 'seed, test'; {DECIDED}"),
    ('[train]\nrun_id = "x"', f"train is 'run_id'; {DECIDED}"),
    ("[train]\nstep = 3", "The setting step is a table of settings, not 3"),
    ("train = 3", "train is 3; it must be a table"),
    ("search = 3", "The setting search is a table of settings, not 3"),
    ('[search]\nkind = "grit"', "search.kind is 'grit'; it must be one of default, published"),
    ("[search]\nlr = 0.1", f"search.lr is 0.1; it {POSITIVE}"),
    ("[search]\nlr = [inf]", rf"search.lr is \[inf\]; it {POSITIVE}"),
    ("[search]\nlr = [nan]", rf"search.lr is \[nan\]; it {POSITIVE}"),
    ("[search]\nlr = [true]", rf"search.lr is \[True\]; it {POSITIVE}"),
    ("[search]\nlr = [-1]", rf"search.lr is \[-1\]; it {POSITIVE}"),
    ("[search]\nlr = [0]", rf"search.lr is \[0\]; it {POSITIVE}"),
    ('[search]\nlr = ["a"]', rf"search.lr is \['a'\]; it {POSITIVE}"),
    ("[search]\nlr = [[1]]", rf"search.lr is \[\[1\]\]; it {POSITIVE}"),
    ("[search]\nlr = [0.1, 0.1]", "search.lr is .*; it must be without repetition"),
    ("[search]\nlr = [0.1]\nlr_factors = [1]", "must be left out where search.lr_factors is given"),
    ("[search]\nlr_factors = [-1]", f"search.lr_factors is .*; it {POSITIVE}"),
    (
        "[search]\nweight_decay = [-1]",
        "search.weight_decay is .*; it must be a list, each a",
    ),
    ("[search]\nweight_decay_factors = [inf]", f"search.weight_decay_factors is .*; it {POSITIVE}"),
    ("[search]\ntrials = 10000000", "search.trials is 10000000; it .* of at most 10,000"),
    ("[search]\ntrials = 0", f"search.trials is 0; it {WHOLE} 1"),
    ("[search]\ntrials = 2.5", f"search.trials is 2.5; it {WHOLE} 1"),
    ("[search]\ntrials = true", f"search.trials is true; it {WHOLE} 1"),
    ("[search]\nlr_steps = 0", r"search.lr_steps is 0; it must be a whole number in \[1, 100\]"),
    ("[search]\nlr_steps = 1000", "search.lr_steps is 1000; it must be a whole number in"),
    ("[search]\nmoves = -1", "search.moves is -1; it must be a whole number in"),
    ("[search]\nlr_span = 1", "search.lr_span is 1; it must be a number above 1"),
    ("[search]\nlr_span = inf", "search.lr_span is inf; it must be a number above 1"),
    ("[search]\nhalving = 0.5", "search.halving is 0.5; it must be 0 or above 1"),
    ("[search]\nhalving = nan", "search.halving is nan; it must be a number of at least 0"),
    ("[search]\nrungs = 0", r"search.rungs is 0; it must be a whole number in \[1, 100\]"),
    ("[search]\nrungs = 1000", "search.rungs is 1000; it must be a whole number in"),
    ('[search]\nselect = "last"', "search.select is 'last'; it must be one of final, best"),
    ("[search]\nseed = 1.5", f"search.seed is 1.5; it {WHOLE} 0"),
    ("[search]\ntrails = 3", "There is no setting search.trails. There are: kind, lr"),
    ("[final]\nseeds = [1.5]", r"final.seeds is \[1.5\]; it must be a list, each a whole number"),
    ("[final]\nseeds = [-1]", r"final.seeds is \[-1\]; it must be a list, each a whole number"),
    ("[final]\nseeds = 3", "final.seeds is 3; it must be a list, each a whole number"),
    ("[final]\nseeds = []", r"final.seeds is \[\]; it must be a list of different seeds"),
    ("[final]\nseeds = [1, 1]", "final.seeds is .*; it must be a list of different seeds"),
    ("[budget]\nruns = 0", f"budget.runs is 0; it {WHOLE} 1"),
    ("[budget]\nruns = 1.5", f"budget.runs is 1.5; it {WHOLE} 1"),
    ("[budget]\ndevice_hours = inf", "budget.device_hours is inf; it must be a number above 0"),
    ("[budget]\ndevice_hours = -1", "budget.device_hours is -1; it must be a number above 0"),
    ("[budget]\nminutes_per_run = 0", "budget.minutes_per_run is 0; it must be a number above 0"),
    ('checkpoints = "none"', "checkpoints is 'none'; it must be one of final, all"),
    ("target = 90", r"target is 90; it must be a number in \(0, 1\]"),
    ("target = true", r"target is true; it must be a number in \(0, 1\]"),
    ("name = 3", "name is 3; it must be printable text"),
    ("opt_args = 3", "opt_args is 3; it must be a table"),
    ("[opt_args]\nsgd = 3", "opt_args.sgd is 3; it must be a table of settings"),
    ("variants = 3", "variants is a list of tables"),
    ("variants = []", "variants is a list of tables"),
    ("variants = [3]", r"variants\[0\] is 3; it must be a table of settings"),
    ("[[variants]]\nname = 3", "variants.name is 3; it must be printable text"),
    ('[[variants]]\nbackbones = "vit_mini"', "variants.backbones is 'vit_mini'; it must be a list"),
    ('[[variants]]\nname = "a"\n[[variants]]\nname = "a"', "variants is .*; it must be named diff"),
    ("[[variants]]\ntrain.seed = 3", f"variants.train of '' is 'seed'; {DECIDED}"),
    (
        "[[variants]]\ntrain.epochs = 1.5",
        r"In \[variants.train of ''\], epochs is 1.5; it must be",
    ),
    ("bakbones = 3", "There is no setting bakbones"),
    ("x = ", "is not valid TOML"),
    ("x = " + "9" * 5000, "has a value that no setting takes: .*digits"),
    ("x = " + "[" * 50 + "]" * 50, "tables within tables too deep"),
]
# A whole file, and what the sentence says.
FILES = [
    ("", r"backbones is \[\]; it must be a list of names, at least one"),
    ('backbones = ["a"]', r"optimizers is \[\]; it must be a list of names, at least one"),
    ('backbones = "a"\noptimizers = ["sgd"]', "backbones is 'a'; it must be a list of names"),
    ('backbones = [3]\noptimizers = ["sgd"]', r"backbones is \[3\]; it must be a list of names"),
    ('backbones = ["a"]\noptimizers = {a = 1}', "optimizers is .*; it must be a list of names"),
    (b'\xef\xbb\xbfbackbones = ["a"]\noptimizers = []', "optimizers is .*; it must be a list"),
    (b'name = "\xe9"', "is not text in UTF-8 .byte 9.; save it in that encoding"),
    (b"\xff\xfe", "is not text in UTF-8"),
    (b"\x00", "is not valid TOML"),
]
# Words after `bocb sweep study.toml`, and what the sentence says.
WORDS = [
    ("--workers -3", f"--workers is -3; it {WHOLE} 1. .bocb sweep --help. lists the options"),
    ("--workers 0", f"--workers is 0; it {WHOLE} 1"),
    ("--workers many", f"--workers is 'many'; it {WHOLE} 1"),
    ("--workers 100000", "--workers is 100000; it must be a whole number of at most 4,096"),
    ("--workers", "--workers: expected one argument"),
    ("--retries -1", f"--retries is -1; it {WHOLE} 0"),
    ("--retries 1.5", f"--retries is '1.5'; it {WHOLE} 0"),
    ("--retry all", "--retry: invalid choice: 'all'"),
    ("--progress graph", "--progress: invalid choice: 'graph'"),
    ("--quick", "--quick needs --dry-run"),
    ("--population many", "--population is 'many'; it must be auto, off, or a number"),
    ("--population 0", "--population is '0'; it must be auto, off, or a number"),
    ("extra", "'extra' is not understood"),
    ("--search.trials", "--search.trials needs a value"),
    ("--search.kind --final.seeds [1]", "--search.kind needs a value"),
    ("--search.trials 0", f"search.trials is 0; it {WHOLE} 1"),
    ("--search.trials 1e9", f"search.trials is 1000000000.0; it {WHOLE} 1"),
    ("--search.trials many", f"search.trials is 'many'; it {WHOLE} 1"),
    ("--search.lr 0.1", f"search.lr is 0.1; it {POSITIVE}"),
    ("--search.lr [inf]", f"search.lr is .*; it {POSITIVE}"),
    ("--final.seeds [1,1]", "final.seeds is .*; it must be a list of different seeds"),
    ("--final.seeds [0.5]", "final.seeds is .*; it must be a list, each a whole number"),
    ("--train.epochs 2.5", f"epochs is 2.5; it {WHOLE} 1"),
    ("--train.step.loss focal", "step.loss is 'focal'; it must be one of"),
    ("--train.lr 0.1", f"train is 'lr'; {DECIDED}"),
    ("--backbones=", r"backbones is \[''\]; it must be a list of names"),
    ("--name.x 3", "name: .* table|name is no table|name"),
    ("--checkpoints none", "checkpoints is 'none'; it must be one of final, all"),
    ("--serach.trials 3", "There is no setting serach"),
    ("--target nan", r"target is 'nan'; it must be a number in \(0, 1\]"),
]


def row(number: int, content: str | bytes, says: str) -> Row:
    name = re.sub(r"[^a-z0-9_.]+", "-", str(content)[:40].lower()).strip("-")
    return Row(
        f"{number}-{name}",
        ["sweep", "study.toml"],
        rf"study\.toml.*{says}",
        files={"study.toml": content},
        script=number % 12 == 0,
    )


ROWS = [
    *(row(n, HEAD + text + "\n", says) for n, (text, says) in enumerate(TOML)),
    *(row(n, text, says) for n, (text, says) in enumerate(FILES, 101)),
    *(
        Row(
            f"sweep-{n}-{words}", ["sweep", "study.toml", *words.split()], says,
            files={"study.toml": HEAD}, script=n % 10 == 0,
        )
        for n, (words, says) in enumerate(WORDS)
    ),
    Row("sweep-nothing", ["sweep"], "arguments are required: study", script=True),
    Row("sweep-none", ["sweep", "none.toml"], "The study none.toml cannot be read: No such file"),
    Row("sweep-zero", ["sweep", "/dev/zero"], "The study .* /dev/zero is no regular file"),
    Row("sweep-folder", ["sweep", "."], r"The study cannot be read: \. is a folder"),
    Row("sweep-home", ["sweep", "~/none.toml"], "/none.toml cannot be read: No such file"),
]  # fmt: skip
