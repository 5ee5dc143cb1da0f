"""Reverb's sampler: batches of a table, as NumPy arrays."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import protocol
import reverb
import reverb_store
import tensorflow as tf
from protocol import BATCH_SIZE, Workload
from reverb_store import Settings, signature


def dataset(address: str, table: str, settings: Settings) -> tf.data.Dataset:
    """Return batches of a table, as the settings have it."""
    kind = reverb.TimestepDataset if settings.sampler == "timestep" else reverb.TrajectoryDataset
    apart = {"num_parallel_calls": 2, "deterministic": False}

    def one(_: Any = None, **batching: Any) -> tf.data.Dataset:
        samples = kind.from_table_signature(
            address,
            table,
            max_in_flight_samples_per_worker=settings.in_flight,
            num_workers_per_iterator=settings.workers,
            rate_limiter_timeout_ms=reverb_store.WAIT_MS,
        )
        return samples.batch(BATCH_SIZE, drop_remainder=True, **batching)

    if settings.sampler == "interleave":
        batches = tf.data.Dataset.range(2).interleave(one, cycle_length=2, **apart)
    else:
        batches = one(**(apart if settings.sampler == "parallel" else {}))
    return batches.prefetch(settings.prefetch) if settings.prefetch else batches


def batches(address: str, table: str, workload: Workload, settings: Settings) -> Iterator[np.ndarray]:
    """Yield the keys of one batch after another, all of whose columns have become arrays."""
    shapes = {name: (BATCH_SIZE, *spec.shape) for name, spec in signature(workload, settings.form).items()}
    if settings.sampler == "client":
        client = reverb.Client(address)
        while True:
            samples = list(
                client.sample(table, BATCH_SIZE, emit_timesteps=False, unpack_as_table_signature=True)
            )
            for name in shapes:
                assert np.stack([sample.data[name] for sample in samples]).shape == shapes[name]
            yield np.array([sample.info.key for sample in samples], np.uint64)
    for batch in dataset(address, table, settings):
        arrays = {name: column.numpy() for name, column in batch.data.items()}
        for name, array in arrays.items():
            assert array.shape == shapes[name], (name, array.shape)
        protocol.touch(
            protocol.unpack(workload, arrays["frames"])["obs"]
            if settings.form == "record"
            else arrays["frames"]
        )
        yield batch.info.key.numpy()


class Sampler:
    """Takes batches of one table; with priorities it sends new ones for each."""

    def __init__(self, address: str, table: str, workload: Workload, settings: Settings) -> None:
        self._table, self._settings = table, settings
        self._batches = batches(address, table, workload, settings)
        self._client, self._tf_client = reverb.Client(address), reverb.TFClient(address)
        self._priorities = itertools.cycle(protocol.priorities())

    def step(self) -> None:
        keys = next(self._batches)
        if self._table == "uniform":
            return
        new = next(self._priorities)
        if self._settings.update == "tf":
            self._tf_client.update_priorities(self._table, keys, new)
        else:
            self._client.mutate_priorities(self._table, dict(zip(keys.tolist(), new.tolist(), strict=True)))

    def use_up(self) -> None:
        """Take what was fetched before the clock runs, so that none of it counts."""
        settings = self._settings
        ahead = 2 * 2 * max(settings.workers, 2) * settings.in_flight // BATCH_SIZE
        for _ in range(ahead + settings.prefetch + 2):
            self.step()
