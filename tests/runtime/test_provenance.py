from datetime import datetime

import torch

from kvtuner_core.runtime.provenance import device_memory, device_name, provenance


def test_numbers_say_where_they_come_from():
    cpu = torch.device("cpu")
    found = provenance(cpu, torch.bfloat16)
    assert datetime.fromisoformat(found.created).tzinfo is not None
    assert (found.device_type, found.dtype) == ("cpu", "bfloat16")
    assert found.device == device_name(cpu) == f"cpu ({torch.get_num_threads()} threads)"
    assert [name for name, _ in found.versions] == ["kvtuner", "torch", "transformers", "python"]
    assert dict(found.versions)["kvtuner"] != "unknown"


def test_free_memory_is_part_of_all_memory():
    free, total = device_memory(torch.device("cpu"))
    assert 0 < free < total
