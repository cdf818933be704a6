"""Backbones and optimizers of the user's own, and wrappers around optimizers."""

from bad_input.row import Row

HEAD = "import jax, jax.numpy as jnp, numpy as np, optax\nfrom flax import nnx, linen\n\n"


def net(init: str, call: str, arguments: str = "*, num_classes, rngs", takes: str = "x") -> str:
    """Return the source of a class `Net`."""
    return (
        f"{HEAD}class Net(nnx.Module):\n"
        f"    def __init__(self, {arguments}):\n        {init}\n"
        f"    def __call__(self, {takes}):\n        {call}\n"
    )


LINEAR = "self.head = nnx.Linear(3, num_classes, rngs=rngs)"
MEAN = "return self.head(x.mean((1, 2)))"
# The body of `Net`, or the whole file, and the sentence.
NETS = {
    "seven-outputs": (
        net("self.head = nnx.Linear(3, 7, rngs=rngs)", MEAN),
        r"'nets:Net' returns 7 values for an image, but the data set has 10 classes: make its last "
        r"layer num_classes wide",
    ),
    "map-out": (
        net(LINEAR, "return self.head(x)"),
        r"returns an array of shape \(2, \d+, \d+, 10\) for 2 im",
    ),
    "sum-over-batch": (
        net(LINEAR, "return self.head(x.mean((0, 1, 2)))"),
        r"of shape \(10,\) for 2",
    ),
    "other-batch": (net(LINEAR, "return self.head(x.reshape(-1, 3))"), "returns an array of shape"),
    "tuple-out": (
        net(LINEAR, "return self.head(x.mean((1, 2))), x"),
        "returns a tuple; return the",
    ),
    "list-out": (net(LINEAR, "return [self.head(x.mean((1, 2)))]"), "returns a list; return the"),
    "dict-out": (
        net(LINEAR, "return {'logits': x}"),
        r"returns a dict; return the logits of shape",
    ),
    "nothing-out": (net(LINEAR, "self.head(x.mean((1, 2)))"), "returns nothing; return the logits"),
    "labels-out": (
        net(LINEAR, "return self.head(x.mean((1, 2))).astype(int)"),
        "returns values of type int32; its logits must be float32",
    ),
    "complex-out": (
        net(LINEAR, "return self.head(x.mean((1, 2))) + 0j"), "returns values of type complex64",
    ),
    "list-of-layers": (
        net("self.layers = [nnx.Linear(3, num_classes, rngs=rngs)]", "return self.layers[0](x)"),
        r"keeps layers in a list, self\.layers, .* write self\.layers = nnx\.List\(\[\.\.\.\]\)",
    ),
    "dict-of-layers": (
        net("self.parts = {'a': nnx.Linear(3, num_classes, rngs=rngs)}", "return x"),
        r"keeps layers in a dict, self\.parts, .* write self\.parts = nnx\.Dict",
    ),
    "train-argument": (
        net(LINEAR, MEAN, takes="x, train"), r"__call__ of .* takes train, .*: remove it",
    ),
    "train-default": (
        net(LINEAR, MEAN, takes="x, train=True"), r"__call__ of .* takes train, .*: remove it",
    ),
    "training-keyword": (
        net(LINEAR, MEAN, takes="x, *, training=False"), "takes training, which a run does",
    ),
    "deterministic": (
        net(LINEAR, MEAN, takes="x, deterministic"), "takes deterministic, which a run",
    ),
    "needs-mask": (net(LINEAR, MEAN, takes="x, mask"), "needs mask; a run passes the images"),
    "no-images": (net(LINEAR, "return 0", takes=""), "__call__ of .* takes no images; write it as"),
    "images-by-keyword": (net(LINEAR, MEAN, takes="*, x"), "takes no images; write it as __call__"),
    "any-arguments": (net(LINEAR, "x, mask = args", takes="*args"), "not enough values to unpack"),
    "no-num-classes": (
        net("self.head = nnx.Linear(3, 10, rngs=rngs)", MEAN, "*, rngs"),
        "has no parameter num_classes: add it, and make the last layer that wide",
    ),
    "no-rngs": (
        net("self.head = nnx.Linear(3, num_classes, rngs=nnx.Rngs(0))", MEAN, "*, num_classes"),
        "has no parameter rngs: add it, and draw the initial weights from it",
    ),
    "needs-width": (
        net(LINEAR, MEAN, "hidden_width, *, num_classes, rngs"),
        "needs a value for its parameter hidden_width: give it with --model-args.hidden-width",
    ),
    "channels-first": (
        net(LINEAR, "return self.head(x.mean((2, 3)))"),
        r"takes images as \(batch, channels, height, width\); they come as \(batch, height, width, "
        r"channels\)",
    ),
    "channels-of-one": (
        net("self.conv = nnx.Conv(1, num_classes, (3, 3), rngs=rngs)", "return self.conv(x)"),
        r"fails in training on images of \(batch, .*, channels\) = \(2, \d+, \d+, 3\): ",
    ),
    "wrong-width": (
        net("self.head = nnx.Linear(4, num_classes, rngs=rngs)", MEAN),
        r"fails in training on images of .*: \w+: .* \(nets\.py, line 8\)",
    ),
    "call-raises": (
        net(LINEAR, "raise RuntimeError('not yet')"), r"RuntimeError: not yet \(nets\.py, line 8\)",
    ),
    "branches-on-values": (
        net(LINEAR, "return self.head(x.mean((1, 2))) if x.sum() > 0 else x"),
        "fails in training on images of .*TracerBoolConversionError",
    ),
    "fixed-batch": (
        net(LINEAR, "return self.head(x.reshape(64, -1, 3).mean(1))"), r"an array of shape \(64",
    ),
    "no-parameters": (net("pass", "return x.mean((1, 2))"), "has no parameters to train; hold its"),
    "whole-parameters": (
        net("self.w = nnx.Param(jnp.ones(3, int))", "return x"), "a parameter of type int32; make",
    ),
    "constructor-raises": (
        net("raise ValueError('odd')", MEAN), r"be built: ValueError: odd \(nets\.py, line 6\)",
    ),
    "constructor-typo": (
        net("self.head = nnx.Linaer(3, num_classes)", MEAN),
        r"cannot be built: AttributeError: .odule .?flax\.nnx.? has no attribute 'Linaer'",
    ),
    "constructor-on-values": (
        net(f"{LINEAR}; float(self.head.kernel[...].sum())", MEAN), "be built: Concretization",
    ),
    "no-call": (
        f"{HEAD}class Net(nnx.Module):\n    def __init__(self, num_classes, rngs): pass\n",
        "has no __call__; add one",
    ),
    "linen": (
        f"{HEAD}class Lin(linen.Module):\n    def __call__(self, x): return x\n"
        "def Net(num_classes, rngs): return Lin()\n",
        "is a module of flax.linen; it must be an nnx.Module",
    ),
    "function-without-module": (
        f"{HEAD}def Net(num_classes, rngs): return None\n",
        "is a NoneType; it must be an nnx.Module",
    ),
    "class-not-instance": (
        f"{HEAD}class Other(nnx.Module): pass\ndef Net(num_classes, rngs): return Other\n",
        "must be an nnx.Module",
    ),
    "number": (f"{HEAD}Net = 3\n", "'nets:Net' is 3; it must be a class or a function"),
    "new-variables": (
        net(LINEAR, "self.seen = nnx.BatchStat(x.mean()); " + MEAN),
        "A call of the model 'nets:Net' adds variables",
    ),
}  # fmt: skip


def opt(body: str, arguments: str = "learning_rate") -> str:
    """Return the source of an optimizer `my_opt`."""
    return f"{HEAD}def my_opt({arguments}):\n    {body}\n"


PLAIN = "optax.GradientTransformation(lambda p: {init}, lambda g, s, p=None: ({updates}, {state}))"
OPTIMIZERS = {
    "no-rate": (opt("return optax.sgd(0.1)", "lr"), "needs a parameter `learning_rate`"),
    "needs-value": (opt("return optax.sgd(0.1)", "learning_rate, momentum"), "momentum"),
    "raises": (
        opt("raise ValueError('odd')"),
        r"cannot be made: ValueError: odd \(opts\.py, line 5\)",
    ),
    "returns-nothing": (
        opt("optax.sgd(learning_rate)"),
        "returns nothing; it must return an Optax",
    ),
    "returns-number": (opt("return learning_rate"), r"returns a \w+; it must return an Optax"),
    "init-raises": (
        opt("return " + PLAIN.format(init="p['nowhere']", updates="g", state="s")),
        r"fails in its init: KeyError: 'nowhere' \(opts\.py, line 5\)",
    ),
    "update-raises": (
        opt("return " + PLAIN.format(init="()", updates="g + 1", state="s")),
        r"fails in its update: TypeError: .* \(opts\.py, line 5\)",
    ),
    "list-of-updates": (
        opt("return " + PLAIN.format(init="()", updates="jax.tree.leaves(g)", state="s")),
        "returns updates of another structure than the gradient",
    ),
    "sums": (
        opt("return " + PLAIN.format(init="()", updates="jax.tree.map(jnp.sum, g)", state="s")),
        r"returns updates whose .* is float32\[\], not float32\[.*\] as in the gradient",
    ),
    "state-grows": (
        opt("return " + PLAIN.format(init="()", updates="g", state="(s, 1)")),
        "returns a state of another structure than the state before it",
    ),
    "state-type": (
        opt("return " + PLAIN.format(init="jnp.zeros((), int)", updates="g", state="s + 0.5")),
        r"returns a state whose value is float32\[\], not int32\[\] as in the state before it",
    ),
    "state-shape": (
        opt("return " + PLAIN.format(init="jnp.zeros(1)", updates="g", state="jnp.zeros(2)")),
        r"returns a state whose value is float32\[2\], not float32\[1\]",
    ),
    "branches-on-values": (
        opt("return " + PLAIN.format(init="()", updates="float(optax.tree.sum(g))", state="s")),
        "fails in its update: ConcretizationTypeError",
    ),
    "asks-for-hessian": (
        opt("def update(g, s, p=None, *, hessian, **_): return g, s\n"
            "    return optax.GradientTransformationExtraArgs(lambda p: (), update)"),
        "asks for hessian, and a training step passes only value, key",
    ),
}  # fmt: skip

NAMED = {
    "lbfgs": ("optax:lbfgs", "asks for grad, value_fn, and a training step passes only value, key"),
    "lookahead-lbfgs": ("lookahead+optax:lbfgs", "'optax:lbfgs' cannot train a network here"),
    "polyak-line": ("optax:scale_by_zoom_linesearch", "needs a parameter `learning_rate`"),
    "sam-twice": ("sam+sam+sgd", r"wraps an optimizer in sam twice; name each wrapper once"),
    "lookahead-twice": ("lookahead+lookahead+sgd", "in lookahead twice"),
    "sam-in-between": ("sam+lookahead+sam+sgd", "in sam twice"),
    "sam-nothing": ("sam+", "There is no optimizer ''"),
    "sam-unknown": ("sam+sgdd", "There is no optimizer 'sgdd'"),
    "net-as-optimizer": ("flax.nnx:Linear", "needs a parameter `learning_rate`"),
    "module-as-optimizer": ("optax:transforms", "must be a function, but it is <module"),
}
TRAIN = ["train", "--log.progress", "none", "--parallel.devices", "1"]

FLAT = net(
    "self.head = nnx.Linear(3072, num_classes, rngs=rngs)", "return self.head(x.reshape(2, -1))"
)
ROWS = [
    Row("other-test-size", [*TRAIN, "--model", "nets:Net", "--test-size", "48"],
        "fails in evaluation on .*48, 48.* It takes the 32 pixels of training: leave out --test",
        files={"nets.py": FLAT}),
    Row("unknown-argument", [*TRAIN, "--model", "nets:Net", "--model-args.width", "48"],
        "width", files={"nets.py": FLAT}),
    Row("not-finite-at-first", [*TRAIN, "--model", "nets:Net", "--compile-cache", "cache"],
        "The first step has a loss of nan .*: this is no divergence",
        files={"nets.py": net(LINEAR, "return self.head(x.mean((1, 2))) / 0")},
        writes=True, script_only=True),
    Row("installed-script", [*TRAIN, "--model", "nets:Net"], NETS["seven-outputs"][1],
        files={"nets.py": NETS["seven-outputs"][0]}, script=True),
    Row("installed-lbfgs", [*TRAIN, "--opt", "optax:lbfgs"], NAMED["lbfgs"][1], script=True),
    *(
        Row(name, [*TRAIN, "--model", "nets:Net"], says, files={"nets.py": source})
        for name, (source, says) in NETS.items()
    ),
    *(
        Row(f"opt-{name}", [*TRAIN, "--model", "vit_mini", "--opt", "opts:my_opt"], says,
            files={"opts.py": source})
        for name, (source, says) in OPTIMIZERS.items()
    ),
    *(
        Row(f"name-{name}", [*TRAIN, "--model", "vit_mini", "--opt", opt_name], says)
        for name, (opt_name, says) in NAMED.items()
    ),
]  # fmt: skip
