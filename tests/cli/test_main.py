"""Real signals at a real `extract`: one exit code, no hang, no crash, no committed row lost."""

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bottleneck.extraction.extract import extract
from bottleneck.store.verify import verify
from tests.helpers.fitted_cache import write_images

SLOW = """
import sys, time, types, click
from bottleneck.cli import main

@click.command()
@click.argument("seconds", type=float)
def command(seconds):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        time.sleep(seconds)
        print("committed", flush=True)

sys.modules["work"] = types.SimpleNamespace(command=command)
main.COMMANDS["work"] = ("work", "works")
main.main()
"""


def wait_for_handlers(run):
    """Wait until the process handles SIGTERM; before that it has done nothing, and dies as any program."""
    while run.poll() is None:
        status = Path(f"/proc/{run.pid}/status").read_text()
        caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.01)


def take_signals():
    """Let a child take all signals, also where this suite is a background job or under nohup."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def slow(seconds):
    command = [sys.executable, "-c", SLOW, "work", str(seconds)]
    run = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=take_signals,
    )
    assert run.stdout.readline() == "ready\n"
    return run


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_the_exit_code_names_the_signal(name, code):
    run = slow(0)
    run.send_signal(getattr(signal, name))
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (code, "committed\n")
    assert err.strip().startswith("Interrupted. Finished work is saved")


@pytest.mark.parametrize("where", ["main.Interruption.begin", "main._say", "main.Interruption.end"])
def test_a_signal_outside_the_command_is_no_traceback(where):
    """Once the handlers are there: before the command, while its error is printed, after its end."""
    owner, name = where.rsplit(".", 1)
    script = f"""
import os, signal
from bottleneck.cli import main
real, sent = {where}, []

def struck(*arguments):
    if "{name}" == "begin":
        real(*arguments)
    if not sent:
        sent.append(os.kill(os.getpid(), signal.SIGTERM))
    real(*arguments)

{owner}.{name} = struck
main.main()
"""
    command = [sys.executable, "-c", script, "no-such-command" if name == "_say" else "--version"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=take_signals)
    assert run.returncode == 143
    assert run.stderr.strip().splitlines()[-1].startswith("Interrupted. Finished work is saved")
    assert "Traceback" not in run.stderr


def test_further_signals_wait_for_the_commit():
    run = slow(3)
    run.send_signal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGHUP):  # 1.2 s apart: never three within a second
        time.sleep(1.2)
        run.send_signal(number)
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (143, "committed\n")
    assert "Traceback" not in err


def test_a_third_signal_within_a_second_leaves_at_once():
    run = slow(30)
    started = time.monotonic()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        run.send_signal(number)
        time.sleep(0.15)
    out, err = run.communicate(timeout=25)
    assert (run.returncode, out) == (129, "")
    assert "Stopped at once" in err
    assert time.monotonic() - started < 25


def test_an_ignored_signal_stays_ignored():
    command = ["nohup", sys.executable, "-c", SLOW, "work", "0"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "ready\n"
    run.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert run.poll() is None
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    assert run.returncode == 143


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_random_signals_cost_no_committed_row(tmp_path, long):
    """Rounds of one to five signals, 1 to 300 ms apart, at one cache; then it is completed and verified."""
    draw, cache = random.Random(0), tmp_path / "c.h5"
    images = write_images(tmp_path / "photos", {"train": 200})
    # The cache of a few images has the settings: runs that go on with it need no torch, and start at once.
    extract(images, cache, backbone="small_cnn", image_size=64, depth=1, limit=8, engine="onnxruntime")
    command = [sys.executable, "-m", "bottleneck", "extract", str(images), "-o", str(cache)]
    for _ in range(200 if long else 2):
        run = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=take_signals
        )
        wait_for_handlers(run)
        time.sleep(draw.uniform(0, 3))
        sent = []
        for _ in range(draw.randint(1, 5)):
            if run.poll() is None:
                sent.append(draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
                run.send_signal(sent[-1])
            time.sleep(draw.uniform(0.001, 0.3))
        _, err = run.communicate(timeout=120)
        # Python gives its handlers up when it ends: a signal then kills it, which a shell calls 128 + signal.
        code = 128 - run.returncode if run.returncode < 0 else run.returncode
        assert code in {0, *(128 + number for number in sent)}, err
        assert "Traceback" not in err
    assert extract(images, cache).images == 600
    assert verify(cache).ok
