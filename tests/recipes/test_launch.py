"""The commands of the recipes can be started by torchrun."""

import inspect
from collections.abc import Callable

import pytest

pytest.importorskip("tyro", reason="tyro is not installed")

from torch.distributed.run import get_args_parser

from flowlib.recipes import imagenet_ar, imagenet_flow, imagenet_latents, video_flow

COMMANDS = [
    imagenet_latents.encode,
    imagenet_flow.sample,
    imagenet_ar.sample,
    video_flow.clips,
    video_flow.sample,
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.__module__}.{command.__name__}")
def test_no_option_looks_like_one_of_torchrun(command: Callable[..., object]) -> None:
    """Its parser refuses, even behind the module's name, an option that could be short for several of its own."""
    words = ["-m", "module", "sample"]
    for name in inspect.signature(command).parameters:
        words += [f"--{name.replace('_', '-')}", "1"]
    assert get_args_parser().parse_args(words).training_script_args == words[2:]


def test_one_letter_would_not_do() -> None:
    with pytest.raises(SystemExit):
        get_args_parser().parse_args(["-m", "module", "sample", "--n", "1"])
