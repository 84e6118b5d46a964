"""Every flag of a command is a parameter of the library function that it calls, with the same default."""

import ast
import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import bottleneck
from bottleneck.backbones.inspect import inspect_backbone
from bottleneck.backbones.listing import available
from bottleneck.backbones.patches import patches_of_source
from bottleneck.backbones.registry import load_backbone, outline
from bottleneck.cli.main import COMMANDS, group
from bottleneck.cli.terminal import Command
from bottleneck.data.config import ReadConfig
from bottleneck.data.preprocess import Preprocess
from bottleneck.demo import demo
from bottleneck.extraction.config import EngineConfig, ExtractConfig
from bottleneck.extraction.extract import extract
from bottleneck.extraction.survey import survey
from bottleneck.fitting.config import FitConfig
from bottleneck.fitting.fit_heads import fit_heads
from bottleneck.installation import doctor
from bottleneck.models.classifier import load_model
from bottleneck.models.config import ExplainConfig
from bottleneck.models.evaluate import evaluate
from bottleneck.models.export import export
from bottleneck.models.predict import predict
from bottleneck.report.explain import explain
from bottleneck.report.page.report import write_report
from bottleneck.store.convert import export as export_cache
from bottleneck.store.merge import merge
from bottleneck.store.reader import describe
from bottleneck.store.verify import verify
from bottleneck.studies.advise.advise import advise
from bottleneck.studies.audit.audit import audit
from bottleneck.studies.compare.compare import compare
from bottleneck.studies.drift.drift import drift
from bottleneck.studies.embedding.map_file import export_map
from bottleneck.studies.rank.rank import rank
from bottleneck.studies.similar.similar import similar
from bottleneck.studies.study_config import StudyConfig
from bottleneck.studies.suggest.suggest import suggest
from bottleneck.studies.train.train import train
from bottleneck.studies.transfer_study.study import transfer_study
from bottleneck.training.config import CompareConfig, FinetuneConfig, ScratchConfig
from bottleneck.training.finetune import finetune
from bottleneck.training.scratch import scratch

# The functions that each command calls; those of `inspect` share its parameters.
FUNCTIONS = {
    "demo": [demo],
    "train": [train],
    "extract": [extract],
    "fit-head": [fit_heads],
    "finetune": [finetune],
    "scratch": [scratch],
    "compare": [compare],
    "evaluate": [evaluate],
    "predict": [predict],
    "explain": [explain],
    "export": [export, export_map],
    "similar": [similar],
    "suggest": [suggest],
    "drift": [drift],
    "advise": [advise],
    "audit": [audit],
    "report": [write_report],
    "rank": [rank],
    "transfer-study": [transfer_study],
    "inspect": [load_backbone, outline, inspect_backbone, patches_of_source, Preprocess.override],
    "backbones": [available],
    "doctor": [doctor],
    "cache info": [describe],
    "cache verify": [verify],
    "cache export": [export_cache],
    "cache merge": [merge],
}

# Parameters of the command line alone: what is printed or drawn, or another function that is called instead.
OUTPUT_ONLY = {
    "extract": {"dry_run"},  # calls `survey`
    "train": {"plan", "report"},  # calls `plan_training`; `write_report`
    "fit-head": {"check"},  # calls `seen_images`
    "explain": {"because", "labels"},  # calls `because`
    "finetune": {"find_lr", "tensorboard"},  # calls `find_learning_rate`; draws epochs
    "scratch": {"tensorboard"},
    "evaluate": {"confusion"},
    "similar": {"sheet"},
    "inspect": {"filters", "patches"},
}

# Parameters that have another name in the library, or become part of one there.
NAMED = {
    "inspect": {"backbone": "name"},
    "compare": {"from_scratch": "scratch", "depths": "scratch"},
    "transfer-study": {"half_a": "halves", "half_b": "halves"},
    "cache info": {"cache": "path"},
    "cache verify": {"cache": "path"},
    "cache export": {"cache": "path", "output": "out"},
    "cache merge": {"caches": "paths", "output": "out"},
}

EVERYWHERE = {"as_json", "debug", "allow_local", "allow_remote"}


def commands():
    """All commands by name; those of a group as `GROUP NAME`."""
    for name in COMMANDS:
        command = group.get_command(None, name)
        if isinstance(command, click.Group):
            yield from ((f"{name} {part}", leaf) for part, leaf in command.commands.items())
        else:
            yield name, command


LEAVES = dict(commands())
each_command = pytest.mark.parametrize("name", LEAVES)


def library_parameters(name):
    """Parameters of a command that are not of the command line alone, by their names in the library."""
    known = NAMED.get(name, {})
    skipped = EVERYWHERE | OUTPUT_ONLY.get(name, set())
    return {known.get(item.name, item.name): item for item in LEAVES[name].params if item.name not in skipped}


def signature_defaults(name, parameter):
    """Defaults of a parameter in the functions that have it; None where it must be given."""
    signatures = [inspect.signature(function).parameters for function in FUNCTIONS[name]]
    defaults = [known[parameter].default for known in signatures if parameter in known]
    return [None if default is inspect.Parameter.empty else default for default in defaults]


def without_flags(name):
    """The context of a command that is called with its required arguments and no other flag."""
    return LEAVES[name].make_context(name, required(LEAVES[name]))


def required(command):
    """The arguments and flags that a command needs"""
    return [text for item in command.params if item.required for text in said(item)]


def said(item):
    """A parameter on the command line, with a value of its type."""
    if getattr(item, "is_flag", False):
        return item.opts[:1]
    for value in ("1", "0.5", "8", "999", "dark=0.5", __file__, *getattr(item.type, "choices", ())):
        try:
            item.type.convert(value, item, None)
        except click.BadParameter:
            continue
        return [*item.opts[:1], value] if isinstance(item, click.Option) else [value]
    raise AssertionError(item.name)


def test_every_command_is_listed():
    assert FUNCTIONS.keys() == LEAVES.keys()


@each_command
def test_the_parameters_of_a_command_are_those_of_the_library(name):
    assert [
        parameter for parameter in library_parameters(name) if not signature_defaults(name, parameter)
    ] == []


@each_command
def test_a_command_has_the_defaults_of_the_library(name):
    context = without_flags(name)
    optional = {
        parameter: item
        for parameter, item in library_parameters(name).items()
        if not item.required and item.name == parameter
    }
    for parameter, item in optional.items():
        for default in signature_defaults(name, parameter):
            assert context.params[parameter] == item.type_cast_value(context, default), parameter


@each_command
def test_every_flag_has_a_help_text_and_shows_its_default(name):
    context = without_flags(name)
    for item in (item for item in LEAVES[name].params if isinstance(item, click.Option)):
        assert len(item.help.split()) > 2, item.name
        assert "[default" not in item.help, item.name
        assert item.required or item.show_default or not context.params[item.name], item.name


@each_command
def test_an_option_of_one_value_is_refused_when_it_is_given_twice(name):
    command = LEAVES[name]
    options = [item for item in command.params if isinstance(item, click.Option)]
    for item in options:
        spellings = [[opt, *said(item)[1:]] for opt in item.opts]
        twice = [*spellings[0], *spellings[-1]]
        arguments = [*required(command), *(spellings[-1] if item.required else twice)]
        if item.multiple:
            assert len(command.make_context(name, arguments).params[item.name]) == 2
        else:
            with pytest.raises(
                click.UsageError, match=f"{item.opts[-1]}( or --[a-z-]+)? is given more than once"
            ):
                command.make_context(name, arguments)


FOREIGN = {"--array", "--help", "--neighbors", "--object-store-memory"}  # of Slurm, embedding-atlas, Ray
SUFFIXES = {"--out-of-fold", "--probe-curve", "--shot-curve"}  # of files beside a head


def test_every_flag_that_a_message_names_exists():
    flags = FOREIGN | SUFFIXES
    for command in LEAVES.values():
        flags |= {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
    named = {}
    for path in Path(bottleneck.__file__).parent.rglob("*.py"):
        for item in ast.walk(ast.parse(path.read_text())):
            if isinstance(item, ast.Constant) and isinstance(item.value, str):
                named |= dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][a-z-]+[a-z]", item.value), path)
    assert len(named) > 100
    assert named.keys() - flags - {"--flag"} == set()  # which stands for any in a docstring


def test_the_two_sides_of_a_switch_are_one_option():
    @click.command(cls=Command)
    @click.option("--on/--off")
    def command(on):
        click.echo(on)

    assert CliRunner().invoke(command, ["--on"]).output == "True\n"
    refused = CliRunner().invoke(command, ["--on", "--off"])
    assert refused.exit_code == 2
    assert "--on or --off is given more than once" in refused.output


@pytest.mark.parametrize(
    "function",
    [*(function for functions in FUNCTIONS.values() for function in functions), survey],
    ids=lambda function: function.__qualname__,
)
def test_no_public_function_takes_anything(function):
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    assert inspect.Parameter.VAR_KEYWORD not in kinds


# Functions that make configs of their arguments, and the fields of these that they do not offer.
FROM_HEAD = {"head_target", "remembered", "inputs_only"}  # fields that a head decides, not the user
CONFIGS = [
    (extract, ExtractConfig, {"engine"}),
    (extract, EngineConfig, set()),
    (extract, ReadConfig, FROM_HEAD | {"seed"}),
    (scratch, ScratchConfig, {"extend", "epochs", "backbone_ratio", "decay", "unfreeze_every"}),
    (scratch, ReadConfig, FROM_HEAD | {"shard"}),
    (finetune, FinetuneConfig, {"extend", "labels"}),
    (compare, CompareConfig, {"extend", "epochs"}),
    (evaluate, ReadConfig, FROM_HEAD | {"shard"}),
    (evaluate, EngineConfig, set()),
    (predict, ReadConfig, FROM_HEAD | {"val_fraction", "test_fraction", "seed", "limit", "shard"}),
    (predict, EngineConfig, set()),
    (explain, ExplainConfig, set()),
    (explain, ReadConfig, FROM_HEAD | {"val_fraction", "test_fraction", "seed", "limit", "shard"}),
    (load_model, EngineConfig, set()),
    (fit_heads, FitConfig, {"head", "C", "shots", "memory"}),
    (transfer_study, StudyConfig, set()),
    (transfer_study, ReadConfig, FROM_HEAD | {"shard"}),
]


@pytest.mark.parametrize(("function", "config", "others"), CONFIGS)
def test_the_fields_of_a_config_are_options_of_its_function_with_the_same_types(function, config, others):
    options = inspect.signature(function).parameters
    for item in (item for item in fields(config) if item.name not in others):
        annotation = re.sub(r"tuple\[([^\[\]]+), \.\.\.\]", r"Sequence[\1]", item.type)
        assert options[item.name].annotation == annotation, item.name


def test_a_wrong_option_is_a_type_error_that_names_it():
    with pytest.raises(TypeError, match="unfreez"):
        finetune("cache.h5", "head.safetensors", unfreez=1)


def test_no_help_imports_torch():
    """Of all commands in one process, since importing torch once would show."""
    code = f"""
import sys
from bottleneck.cli.main import group
for arguments in {[["--help"], *([*name.split(), "--help"] for name in LEAVES)]}:
    try:
        group.main(arguments, prog_name="bottleneck")
    except SystemExit as stop:
        assert not stop.code, stop.code
    assert "torch" not in sys.modules, arguments
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
