"""What a machine or a container gives: read from control groups as the kernel shows them, of both versions."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unerase_backend.generation_workers import large_model_workers, picture_cores, small_model_workers
from unerase_backend.machine import Card, Cores, cores, free_memory, read_cards

ALLOWED = len(os.sched_getaffinity(0))


def process_in(folder: Path, *lines: str) -> Path:
    file = folder / "cgroup"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content + "\n")


def test_the_least_quota_above_the_process_counts(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    write(groups / "pod" / "container", cpu__max="max 100000")
    write(groups / "pod", cpu__max="150000 100000")
    write(groups, cpu__max="800000 100000")
    found = cores(groups, process_in(tmp_path, "0::/pod/container"))
    assert found == Cores(ALLOWED, 1.5)
    assert found.usable == 1


def test_a_container_that_sees_its_own_group_as_the_root_is_found(tmp_path: Path) -> None:
    write(tmp_path / "groups", cpu__max="50000 100000")
    found = cores(tmp_path / "groups", process_in(tmp_path, "0::/kubepods/pod7/named-by-the-host"))
    assert (found.quota, found.usable) == (0.5, 1)


def test_the_first_version_of_control_groups_is_read(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    write(groups / "cpu,cpuacct" / "docker" / "7", **{"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "50000"})
    write(groups / "cpu,cpuacct", **{"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"})
    assert cores(groups, process_in(tmp_path, "4:cpu,cpuacct:/docker/7", "0::/")).quota == 4.0
    assert cores(groups, process_in(tmp_path, "4:cpu,cpuacct:/elsewhere", "0::/")).quota is None


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert cores(tmp_path, tmp_path / "none") == Cores(ALLOWED)
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores(tmp_path, tmp_path / "none").usable == 1
    finally:
        os.sched_setaffinity(0, before)


@given(allowed=st.integers(1, 512), quota=st.none() | st.floats(0.01, 1000))
def test_usable_cores_are_whole_and_within_both_bounds(allowed: int, quota: float | None) -> None:
    usable = Cores(allowed, quota).usable
    assert 1 <= usable <= allowed
    assert usable == 1 or quota is None or usable <= quota


@pytest.mark.parametrize(
    ("folder", "line", "files"),
    [
        (
            "pod",
            "0::/pod",
            {"memory__max": "3000000", "memory__current": "2500000", "memory__stat": "file 9\ninactive_file 1500000"},
        ),
        (
            "memory/pod",
            "4:memory:/pod",
            {
                "memory__limit_in_bytes": "3000000",
                "memory__usage_in_bytes": "2500000",
                "memory__stat": "inactive_file 7\ntotal_inactive_file 1500000",
            },
        ),
    ],
)
def test_the_memory_of_a_container_is_what_its_group_leaves(
    tmp_path: Path, folder: str, line: str, files: dict[str, str]
) -> None:
    write(tmp_path / "groups" / folder, **files)
    assert free_memory(tmp_path / "groups", process_in(tmp_path, line)) == 2_000_000


def test_a_group_without_a_bound_leaves_the_machine_s_memory(tmp_path: Path) -> None:
    write(tmp_path / "groups", memory__max="max", memory__current="5")
    assert 10**8 < free_memory(tmp_path / "groups", process_in(tmp_path, "0::/")) < 10**14
    assert 10**8 < free_memory() < 10**14


@given(
    cores=st.integers(1, 512),
    replica=st.floats(1, 1e12),
    free=st.floats(-1e12, 1e15),
    threads=st.none() | st.integers(1, 64),
)
def test_never_more_threads_than_cores_and_never_more_replicas_than_memory(
    cores: int, replica: float, free: float, threads: int | None
) -> None:
    for workers in (
        small_model_workers(cores, free, replica, threads=threads),
        large_model_workers(cores, free, replica, threads=threads),
    ):
        assert workers.replicas >= 1
        assert workers.replicas == 1 or workers.replicas * replica <= free
        if threads is None or workers.replicas > 1:
            assert workers.replicas * workers.threads <= picture_cores(cores) <= cores


@given(cores=st.integers(1, 512), more=st.integers(0, 512), replica=st.floats(1, 1e6), free=st.floats(0, 1e9))
def test_more_cores_or_memory_never_take_away(cores: int, more: int, replica: float, free: float) -> None:
    for rule in (small_model_workers, large_model_workers):
        before = rule(cores, free, replica)
        for after in (rule(cores + more, free, replica), rule(cores, free + more * replica, replica)):
            assert after.replicas >= before.replicas
    few, many = (large_model_workers(each, 1e18, 1.0) for each in (cores, cores + more))
    assert few.replicas * few.threads <= many.replicas * many.threads or many.replicas == 16


def test_one_core_has_one_process_of_one_thread() -> None:
    for rule in (small_model_workers, large_model_workers):
        workers = rule(1, 1e15, 1.0)
        assert (workers.replicas, workers.threads) == (1, 1)


def test_the_list_of_the_driver_is_read() -> None:
    listed = "NVIDIA A100-SXM4-80GB, 80000\nNVIDIA RTX A5000, 24000\n"
    assert read_cards(listed) == [
        Card("NVIDIA A100-SXM4-80GB", 80000 * 2**20),
        Card("NVIDIA RTX A5000", 24000 * 2**20),
    ]
    with pytest.raises(ValueError, match="not a GPU with its free memory"):
        read_cards("No devices were found\n")
