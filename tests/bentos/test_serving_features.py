import asyncio

import pytest

from bentos.features import Busy, Coalescer


def run(coroutine):
    return asyncio.run(coroutine)


def test_coalescer_batches_what_queued_meanwhile():
    async def main():
        seen, gate = [], asyncio.Event()

        async def process(items):
            seen.append(list(items))
            if len(seen) == 1:
                await gate.wait()
            return [i * 10 for i in items]

        c = Coalescer(process, lambda i: 1, batch=3, limit=100)
        tasks = [asyncio.create_task(c.submit(i)) for i in range(8)]
        await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*tasks) == [i * 10 for i in range(8)]
        assert seen == [[0], [1, 2, 3], [4, 5, 6], [7]]
        assert not c.running
        assert c.queued == 0

    run(main())


def test_coalescer_hands_an_error_to_its_batch_only():
    async def main():
        async def process(items):
            await asyncio.sleep(0)
            if 1 in items:
                raise OSError("store")
            return items

        c = Coalescer(process, lambda i: 1, batch=2, limit=100)
        found = await asyncio.gather(*(c.submit(i) for i in range(5)), return_exceptions=True)
        assert [isinstance(f, OSError) for f in found] == [False, True, True, False, False]
        assert await c.submit(7) == 7

    run(main())


def test_coalescer_refuses_what_would_wait_too_long():
    async def main():
        gate = asyncio.Event()

        async def process(items):
            await gate.wait()
            return items

        c = Coalescer(process, len, batch=10, limit=3)
        first = asyncio.create_task(c.submit("ab"))
        await asyncio.sleep(0)
        second = asyncio.create_task(c.submit("cd"))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await c.submit("ef")
        gate.set()
        assert await asyncio.gather(first, second) == ["ab", "cd"]

    run(main())


def test_coalescer_goes_on_when_the_first_caller_is_cancelled():
    async def main():
        gate = asyncio.Event()

        async def process(items):
            await gate.wait()
            return items

        c = Coalescer(process, lambda i: 1, batch=10, limit=10)
        first = asyncio.create_task(c.submit(1))
        await asyncio.sleep(0)
        second = asyncio.create_task(c.submit(2))
        await asyncio.sleep(0)
        first.cancel()
        gate.set()
        assert await second == 2

    run(main())
