import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvtuner_core.compute.cluster import start_cluster
from kvtuner_core.compute.devices import Gpu


def seen(names):
    return tuple(os.environ.get(name) for name in names)


def test_each_gpu_has_a_worker_that_sees_it_alone():
    from distributed import Client

    gpus = (Gpu(id="GPU-one", name="one"), Gpu(id="GPU-two", name="two"))
    before = os.environ.get("OMP_NUM_THREADS")
    with start_cluster(gpus) as cluster, Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        environments = client.run(seen, ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")).values()
        threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
        assert sorted(environments) == [("GPU-one", threads), ("GPU-two", threads)]
        assert all(address.startswith("tls://127.0.0.1:") for address in client.scheduler_info()["workers"])
        assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
        assert cluster.scheduler.allowed_failures == 3
    assert os.environ.get("OMP_NUM_THREADS") == before


def _asked(address, credentials):
    from distributed.comm import connect

    async def ask():
        return await connect(address, timeout=1, **credentials)

    asyncio.run(ask())


def test_only_who_has_the_certificate_is_let_in():
    from distributed import Client, Security

    with (
        start_cluster(()) as cluster,
        Client(cluster, set_as_default=False) as client,
        ThreadPoolExecutor(max_workers=1) as strangers,
    ):
        client.wait_for_workers(1, timeout=60)
        places = [cluster.scheduler_address, *client.scheduler_info()["workers"]]
        for place in places:
            stranger = Security.temporary().get_connection_args("client")
            for address, credentials in ((place.replace("tls:", "tcp:"), {}), (place, stranger)):
                # In a thread of its own: the browser tests leave an event loop running in this one.
                asking = strangers.submit(lambda where=address, how=credentials: _asked(where, how))
                with pytest.raises(OSError, match=r"Timed out|failed|certificate|closed"):
                    asking.result(timeout=60)
        assert client.submit(sum, (1, 2)).result(timeout=60) == 3
