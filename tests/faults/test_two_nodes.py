"""Two nodes, each with a network of its own: the same numbers as one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import load_file

from tests.faults.processes import PROJECT, directory, finish, soak

DIGITS = ("--dataset_name=digits", "--per_label=10", "--model_name=conv")
COMMANDS = (
    ("compute_threat", "--dataset_name=digits", "--per_label=10"),
    ("train", *DIGITS, "--training_steps=20it"),
    ("test", *DIGITS, "--training_steps=20it", "--standard_eval", "--N_adv_eval", "--num_examples=300"),
)
ADDRESSES = ("10.77.31.1", "10.77.31.2")


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


@pytest.fixture
def nodes() -> Iterator[tuple[str, str]]:
    """Two network namespaces, joined by a pair of virtual devices."""
    names = (f"node{os.getpid()}a", f"node{os.getpid()}b")
    if shutil.which("ip") is None or not ip("netns", "add", names[0]):
        pytest.skip("needs the right to make network namespaces")
    ip("netns", "add", names[1])
    try:
        assert ip("link", "add", "veth0", "netns", names[0], "type", "veth", "peer", "name", "veth0", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            assert ip("-n", name, "address", "add", f"{address}/24", "dev", "veth0")
            assert ip("-n", name, "link", "set", "veth0", "up") and ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


def on_nodes(nodes: tuple[str, str], root: Path, *words: str) -> None:
    """One agent on each node, one process each, a root that both share."""
    processes = []
    for rank, name in enumerate(nodes):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={rank}"]
        launcher += ["--nproc_per_node=1", f"--master_addr={ADDRESSES[0]}", "--master_port=29517"]
        variables = {"NONISOTROPIC_HOME": str(root), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "veth0"}
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, *launcher, str(PROJECT / "nonisotropic.py"), *words],
                env={**os.environ, **variables},
                cwd=PROJECT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    told = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told


@soak
def test_two_nodes_make_the_numbers_of_one_process(
    nodes: tuple[str, str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    alone, two = tmp_path / "alone", tmp_path / "two"
    for words in COMMANDS:
        finish(alone, *words)
        on_nodes(nodes, two, *words)
    anchors = [directory(root, "compute_threat") / "anchors.safetensors" for root in (alone, two)]
    assert anchors[0].read_bytes() == anchors[1].read_bytes()
    weights = [load_file(directory(root, "train") / "model.safetensors") for root in (alone, two)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert numpy.allclose(value, weights[1][name], atol=1e-4), name
    finals = [json.loads((directory(root, "train") / "result.json").read_text())["final"] for root in (alone, two)]
    assert finals[0]["test_accuracy"] == finals[1]["test_accuracy"]
    # The model of the two nodes, tested by one process.
    places = [shutil.copytree(two, tmp_path / "copy"), two]
    shutil.rmtree(places[0] / "runs/digits/test")
    finish(places[0], *COMMANDS[2])
    first, second = (dict(numpy.load(directory(place, "test") / "examples.npz")) for place in places)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].tobytes() == second[name].tobytes(), name
    record_property("figures", f"after 20 steps: one process {finals[0]}, two nodes {finals[1]}")
