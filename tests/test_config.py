import dataclasses
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bocb_jax.config import (
    CheckpointConfig,
    LogConfig,
    ScheduleConfig,
    StepConfig,
    TrainConfig,
    difference,
    from_dict,
    from_toml,
    run_id,
    to_dict,
)
from bocb_jax.errors import UserError
from bocb_jax.study.spec import overrides_of
from bocb_jax.train import parse

FULL = TrainConfig(
    model="resnet_mini",
    opt="lamb",
    lr=0.01,
    model_args={"stem": "cifar"},
    opt_args={"b1": 0.8},
    schedule=ScheduleConfig(name="step", boundaries=(0.3, 0.6)),
)


def test_round_trip_through_json_types():
    assert from_dict(TrainConfig, to_dict(FULL)) == FULL


def test_command_line_reaches_every_field():
    words = ["--model", "resnet_mini", "--opt=lamb", "--lr", "0.01", "--model-args.stem", "cifar"]
    words += ["--opt-args.b1=0.8", "--schedule.name", "step", "--schedule.boundaries", "0.3", "0.6"]
    assert parse(words) == FULL


def test_command_line_wins_over_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('model = "resnet_mini"\nlr = 0.5\n[opt_args]\nb1 = 0.8\n[step]\nema = 0.99\n')
    config = parse(["--config", str(file), "--lr", "0.25", "--opt-args.b2", "0.9"])
    assert (config.model, config.lr, config.step.ema) == ("resnet_mini", 0.25, 0.99)
    assert config.opt_args == {"b1": 0.8, "b2": 0.9}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("false", False), ("True", True), ("None", None), ("[2,2]", [2, 2]), ("-3", -3),
        ("1e5", 1e5), ("cifar", "cifar"), ("007", "007"), ("a=b", "a=b"), ("[1, 'a']", [1, "a"]),
        ("", ""),
    ],
)  # fmt: skip
def test_arguments_of_backbones_and_optimizers_are_read_as_values(word, value):
    for flags in (["--opt-args.some-name", word], [f"--opt_args.some_name={word}"]):
        config = parse(["--model", "vit_mini", *flags, "--lr", "0.5"])
        assert config == TrainConfig(model="vit_mini", lr=0.5, opt_args={"some_name": value})
        assert type(config.opt_args["some_name"]) is type(value)
    assert overrides_of(["--opt_args.sgd.some-name", word]) == {"opt_args.sgd.some_name": value}


def test_arguments_replace_those_of_the_file_and_are_shown_by_help(tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_text("[opt_args]\nnesterov = true\n[model_args]\ndepths = [2, 2]\n")
    words = ["--config", str(file), "--opt-args.nesterov", "false", "--model-args.depths=3"]
    config = parse(words)
    assert (config.opt_args, config.model_args) == ({"nesterov": False}, {"depths": 3})
    with pytest.raises(SystemExit):
        parse([*words, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--opt-args.nesterov" in shown
    assert "--model-args.depths INT" in shown


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0}, "lr is 0; it must be a positive number"),
        ({"lr": -1e-3}, "lr is -0.001; it must be a positive number"),
        ({"epochs": 0}, "epochs is 0; it must be a whole number of at least 1"),
        ({"init_ema": True}, "init_ema chooses among the weights of a file"),
        ({"step": {"ema": 1.0}}, r"step.ema is 1.0; it must be a number in \[0, 1\)"),
        ({"learning_rate": 1}, "There is no setting learning_rate"),
        ({"step": {"emma": 0.9}}, "There is no setting step.emma"),
        ({"step": 3}, "step is a table of settings, not 3"),
        ({"lr": "fast"}, "lr is 'fast'; it must be a positive number"),
        ({"schedule": {"boundaries": [0.6, 0.3]}}, "rising"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        from_dict(TrainConfig, settings)


def test_settings_by_position_are_named():
    assert StepConfig("bce", 0.1) == StepConfig(loss="bce", label_smoothing=0.1)
    with pytest.raises(UserError, match=r"^step.label_smoothing is 3; it must be"):
        StepConfig("bce", 3)
    with pytest.raises(TypeError, match="multiple values for keyword argument 'loss'"):
        StepConfig("bce", loss="bce")
    with pytest.raises(TypeError, match="takes 12 values, not 13"):
        StepConfig(*[None] * 13)


def test_toml_errors_name_the_file(tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text("lr = ")
    with pytest.raises(UserError, match=r"bad\.toml is not valid TOML"):
        from_toml(str(file))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        from_toml(str(tmp_path / "none.toml"))
    assert tomllib.loads("lr = 1")


def test_the_id_follows_what_decides_the_outcome_and_nothing_else():
    base = TrainConfig()
    elsewhere = dataclasses.replace(
        base,
        workdir="x",
        resume=False,
        log=LogConfig(every_steps=3, progress="none"),
        checkpoint=CheckpointConfig(every_steps=5),
    )
    assert run_id(base) == run_id(elsewhere)
    others = [{"seed": 1}, {"lr": 0.5}, {"model": "resnet50"}, {"opt_args": {"b1": 0.8}}]
    ids = {run_id(dataclasses.replace(base, **other)) for other in others}
    assert len(ids | {run_id(base)}) == len(others) + 1


def test_the_id_is_a_folder_name():
    name = run_id(TrainConfig(dataset="folder:/a b/c", model="mypkg.nets:MyNet"))
    assert "/" not in name
    assert ":" not in name
    assert " " not in name


def test_a_folder_that_holds_a_run_is_the_run(tmp_path):
    config = TrainConfig(workdir=str(tmp_path))
    assert config.folder() == tmp_path / run_id(config)
    (tmp_path / "config.json").write_text("{}")
    assert config.folder() == tmp_path


values = st.one_of(st.integers(), st.text(), st.none())
tables = st.dictionaries(st.sampled_from("abc"), values)


@given(tables, tables)
def test_difference_is_empty_only_between_equals(old, new):
    assert (difference(old, new) == []) == (
        all(old.get(name) == new.get(name) for name in old.keys() | new.keys())
    )


def test_difference_names_nested_settings():
    assert difference({"a": {"b": 1}}, {"a": {"b": 2}}) == ["a.b: 1 there, 2 here"]


def test_an_earlier_name_of_a_setting_is_understood_and_keeps_the_run_id(tmp_path):
    given = TrainConfig(step=StepConfig(precise_bn_batches=3))
    assert from_dict(TrainConfig, {"step": {"settling_batches": 3}}) == given
    file = tmp_path / "run.toml"
    file.write_text("[step]\nsettling_batches = 3\n")
    assert from_toml(str(file)) == given
    for words in (
        ["--step.settling-batches", "3"],
        ["--step.settling_batches=3"],
        ["--step.precise-bn-batches", "3"],
        ["--config", str(file)],
    ):
        assert parse(words) == given
    assert given.identity()["step"]["settling_batches"] == 3
    assert "precise_bn_batches" not in given.identity()["step"]
    # As computed by the version that had the earlier name.
    assert run_id(given) == "digits-vit_s-adamw-s0-a041a870"
    assert run_id(TrainConfig()) == "digits-vit_s-adamw-s0-d5a7f085"
    assert from_dict(TrainConfig, given.identity()) == given
    with pytest.raises(UserError, match=r"earlier name of .*; give only one"):
        from_dict(TrainConfig, {"step": {"settling_batches": 3, "precise_bn_batches": 4}})


def test_a_setting_of_later_versions_changes_no_earlier_run():
    config = from_dict(TrainConfig, {"step": {"ema": 0.99}})
    assert "ema_warmup" not in config.identity()["step"]
    plain = from_dict(TrainConfig, {"step": {"ema": 0.99, "ema_warmup": False}})
    assert run_id(plain) != run_id(config)
