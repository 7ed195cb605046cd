import pytest

from kvtuner_core.compute import devices
from kvtuner_core.compute.devices import Gpu, list_gpus, parse_gpus, select_gpus

TWO = """GPU 0: NVIDIA H200 (UUID: GPU-11111111-aaaa)
GPU 1: NVIDIA H200 (UUID: GPU-22222222-bbbb)
"""
DIVIDED = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-11111111-aaaa)
  MIG 3g.20gb     Device  0: (UUID: MIG-33333333-cccc)
  MIG 3g.20gb     Device  1: (UUID: MIG-44444444-dddd)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-22222222-bbbb)
"""


def test_every_gpu_is_found_by_its_identity():
    assert parse_gpus(TWO) == (
        Gpu(id="GPU-11111111-aaaa", name="NVIDIA H200"),
        Gpu(id="GPU-22222222-bbbb", name="NVIDIA H200"),
    )


def test_a_divided_gpu_counts_through_its_slices():
    assert [gpu.id for gpu in parse_gpus(DIVIDED)] == ["MIG-33333333-cccc", "MIG-44444444-dddd", "GPU-22222222-bbbb"]
    assert parse_gpus(DIVIDED)[0].name == "NVIDIA A100-SXM4-40GB 3g.20gb"


@pytest.mark.parametrize("listing", ["", "No devices found.\n", "Failed to initialize NVML: Driver mismatch\n"])
def test_no_gpu_is_no_gpu(listing):
    assert parse_gpus(listing) == ()


@pytest.mark.parametrize(
    ("visible", "ids"),
    [
        ("", []),
        ("-1", []),
        ("1,0", ["1", "0"]),
        ("0,-1,1", ["0"]),
        ("7", []),
        ("GPU-2222", ["GPU-22222222-bbbb"]),
        (" 0 , GPU-22222222-bbbb", ["0", "GPU-22222222-bbbb"]),
    ],
)
def test_the_environments_choice_is_obeyed(visible, ids):
    assert [gpu.id for gpu in select_gpus(parse_gpus(TWO), visible)] == ids


def test_gpus_are_asked_of_the_driver(tmp_path, monkeypatch):
    driver = tmp_path / "nvidia-smi"
    driver.write_text(f"#!/bin/sh\ncat <<'END'\n{TWO}END\n")
    driver.chmod(0o700)
    monkeypatch.setattr(devices.shutil, "which", lambda _: str(driver))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert len(list_gpus()) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.id for gpu in list_gpus()] == ["1"]


def test_without_a_driver_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices.shutil, "which", lambda _: None)
    assert list_gpus() == ()
    monkeypatch.setattr(devices.shutil, "which", lambda _: str(tmp_path / "gone"))
    assert list_gpus() == ()
