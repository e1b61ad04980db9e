"""What processes agree on, over a store in memory: threads stand for processes."""

import threading
from types import SimpleNamespace

import jax
import pytest

from jaxsae.distributed import processes
from jaxsae.errors import BadInput


class Store:
    """The part of JAX's key-value store that is used."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self.changed:
            if key in self.values:
                raise jax.errors.JaxRuntimeError("ALREADY_EXISTS")
            self.values[key] = value
            self.changed.notify_all()

    def key_value_increment(self, key, by):
        with self.changed:
            self.values[key] = self.values.get(key, 0) + by
            return self.values[key]

    def key_value_try_get(self, key):
        with self.changed:
            if key not in self.values:
                raise jax.errors.JaxRuntimeError("NOT_FOUND")
            return self.values[key]

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, milliseconds / 1e3):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
            return self.values[key]


@pytest.fixture
def run(monkeypatch):
    """run(function, count) -> what `function(index)` returns or raises in each of `count` processes."""
    local, store = threading.local(), Store()
    monkeypatch.setattr(processes, "_store", lambda: store)
    monkeypatch.setattr(processes, "is_distributed", lambda: True)
    fake = SimpleNamespace(process_index=lambda: local.index, process_count=lambda: local.count, errors=jax.errors)
    monkeypatch.setattr(processes, "jax", fake)

    def run(function, count=3):
        results = [None] * count

        def process(index):
            local.index, local.count = index, count
            try:
                results[index] = function(index)
            except Exception as error:
                results[index] = error

        threads = [threading.Thread(target=process, args=(index,)) for index in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        return results

    return run


def test_the_primary_runs_and_all_hear_its_result(run):
    calls = []
    assert run(lambda i: processes.on_primary(lambda: calls.append(i) or {"seed": 3})) == [{"seed": 3}] * 3
    assert calls == [0]


def test_exchanges_come_in_order(run):
    texts = run(lambda i: [processes.exchange(f"{i}{number}") for number in range(3)])
    assert texts == [[["00", "10", "20"], ["01", "11", "21"], ["02", "12", "22"]]] * 3


def test_the_others_run_after_the_primary(run):
    order = []
    results = run(lambda i: processes.primary_first(lambda: order.append(i) or i))
    assert results == [0, 1, 2] and order[0] == 0 and sorted(order) == [0, 1, 2]


@pytest.mark.parametrize("who", [0, 2])
def test_bad_input_of_one_is_that_of_all(run, who):
    def check(i):
        if i == who:
            raise BadInput("--sae.k is 9: allowed is 1 to 8")

    results = run(lambda i: processes.on_all(lambda: check(i)))
    assert all(isinstance(error, BadInput) and "--sae.k is 9" in str(error) for error in results)
    others = [str(error) for i, error in enumerate(results) if i != who]
    assert all(text.endswith(f"(says process {who})") for text in others)


def test_another_failure_of_one_ends_all(run):
    def fail(i):
        if i == 1:
            raise ZeroDivisionError("no")

    results = run(lambda i: processes.on_all(lambda: fail(i)))
    assert isinstance(results[1], ZeroDivisionError)
    assert all("process 1 ended" in str(results[i]) and "ZeroDivisionError: no" in str(results[i]) for i in (0, 2))


def test_one_process_alone_asks_nobody():
    assert processes.on_primary(lambda: (1, 2)) == (1, 2) and processes.exchange("a") == ["a"]
    assert processes.name() == "" and processes.end(3) == 3
