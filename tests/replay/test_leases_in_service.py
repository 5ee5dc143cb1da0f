"""Batches that were fetched and not consumed yet, and what waits for them at the service."""

import numpy as np
import pytest

from fornix.common.errors import InvalidRequestError, WaitTimeoutError
from fornix.common.messages import (
    Batch,
    Consume,
    CreateTable,
    Done,
    OpenWriter,
    ResetTable,
    SetLimiter,
    Stacks,
    UpdatePriorities,
)
from fornix.common.specs import LimiterSpec, SamplerSpec, Transition

from .builders import F, M, observe, sample, spec
from .desk import RATIO, Desk, a_desk, write


def leased(lease, batch_size=16, session="s", **changes):
    return sample(batch_size, session=session, lease=lease, **changes)


def ahead(limiter=RATIO, **options):
    """Return a desk of four inserts: under RATIO, d = 4·(4 - 2) = 8 = ρ·E, so that inserts are held."""
    desk = a_desk(limiter, **options)
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    return desk


def counts(desk, name="t"):
    table = desk.table(name)
    return table["samples"], table["leased"]


def open_sides(desk):
    limiter = desk.table()["limiter"]
    return limiter["may_insert"], limiter["may_sample"]


# leased, consumed, given back ----------------------------------------------------------------------


def test_a_batch_is_charged_when_it_has_been_consumed():
    desk = ahead()
    assert isinstance(desk.ask(leased(1, 5)), Batch)
    assert isinstance(desk.ask(leased(2, 3)), Batch)
    assert counts(desk) == (0, 8)
    assert isinstance(desk.ask(leased(3, 1, consumed=1)), Batch)
    assert counts(desk) == (5, 4)
    assert desk.ask(Consume(table="t", session="s", consumed=2)) == Done()
    assert counts(desk) == (8, 1)
    assert desk.ask(Consume(table="t", session="s", consumed=2)) == Done()
    assert counts(desk) == (8, 1)
    assert desk.ask(Consume(table="t", session="s", consumed=2, release=True)) == Done()
    assert counts(desk) == (8, 0)


def test_both_sides_wait_only_while_batches_are_leased_and_consumption_opens():
    desk = ahead()
    assert open_sides(desk) == (False, True)
    desk.ask(leased(1))
    assert open_sides(desk) == (False, False)
    insert, other = write(desk, 6, (0, M, 6)), desk.send(leased(1, 2, session="another"))
    assert not desk.answers.keys() & {insert, other}
    desk.clock.now += 3.0
    desk.ask(Consume(table="t", session="s", consumed=1))
    assert isinstance(desk.answers[insert], Stacks)
    assert isinstance(desk.answers[other], Batch)
    assert desk.answers[insert].held_s == desk.answers[other].held_s == 3.0
    assert counts(desk) == (16, 2)


def test_what_a_session_gives_back_opens_for_the_others():
    desk = ahead()
    desk.ask(leased(1))
    insert, other = write(desk, 6, (0, M, 6)), desk.send(sample(1))
    desk.ask(Consume(table="t", session="s", consumed=0, release=True))
    assert isinstance(desk.answers[other], Batch)
    assert isinstance(desk.answers[insert], Stacks)
    assert counts(desk) == (1, 0)


def test_a_session_that_ends_waits_for_nothing_more():
    desk = ahead()
    desk.ask(leased(1))
    own = desk.send(leased(2, timeout_s=500.0))
    other = desk.send(leased(1, 1, session="another", timeout_s=500.0))
    desk.ask(Consume(table="t", session="s", consumed=1, release=True))
    write(desk, 6, (0, M, 6))
    assert isinstance(desk.answers[other], Batch)
    assert own not in desk.answers
    assert counts(desk) == (16, 1)
    assert desk.table()["limiter"]["waiting_samples"] == 0


def test_a_session_that_nobody_knows_consumes_nothing():
    desk = ahead()
    assert desk.ask(Consume(table="t", session="ghost", consumed=5, release=True)) == Done()
    assert counts(desk) == (0, 0)


def test_leases_are_those_of_a_table():
    desk = ahead()
    desk.ask(CreateTable(table="u", spec=spec(limiter=RATIO, rows_of="t")))
    desk.ask(leased(1))
    assert counts(desk) == (0, 16)
    assert counts(desk, "u") == (0, 0)
    desk.ask(Consume(table="u", session="s", consumed=1))
    assert counts(desk) == (0, 16)


# sessions that fall silent -------------------------------------------------------------------------


def test_a_silent_session_is_given_up_and_what_it_held_opens_for_others():
    desk = ahead(lease_s=30.0)
    desk.ask(leased(1))
    other = desk.send(leased(1, 1, session="another", timeout_s=500.0))
    assert desk.service.patience_s() == 30.0
    desk.pass_time(29.5)
    assert other not in desk.answers
    assert desk.service.patience_s() == pytest.approx(0.5)
    desk.pass_time(0.5)
    assert isinstance(desk.answers[other], Batch)
    assert counts(desk) == (0, 1)


def test_who_consumes_after_all_is_charged_then():
    desk = ahead(lease_s=30.0)
    desk.ask(leased(1))
    desk.pass_time(30.0)
    assert counts(desk) == (0, 0)
    desk.ask(Consume(table="t", session="s", consumed=1))
    assert counts(desk) == (16, 0)
    desk.ask(Consume(table="t", session="s", consumed=1))
    assert counts(desk) == (16, 0)


def test_any_request_of_a_session_keeps_its_leases():
    desk = ahead(lease_s=30.0)
    desk.ask(leased(1))
    for _ in range(4):
        desk.pass_time(29.0)
        desk.ask(Consume(table="t", session="s", consumed=0))
    assert counts(desk) == (0, 16)
    desk.pass_time(30.0)
    assert counts(desk) == (0, 0)


def test_who_waits_in_line_is_not_silent():
    desk = ahead(lease_s=30.0)
    desk.ask(leased(1))
    waits = desk.send(leased(2, timeout_s=70.0))
    for _ in range(3):
        desk.pass_time(20.0)
    assert counts(desk) == (0, 16)
    desk.pass_time(10.0)
    assert desk.answers[waits].code == WaitTimeoutError.code
    desk.pass_time(30.0)
    assert counts(desk) == (0, 0)


# the same lease again ------------------------------------------------------------------------------


def test_a_lease_that_is_asked_for_twice_waits_once_and_is_answered_where_it_was_asked_last():
    desk = a_desk()
    first = desk.send(leased(1, 4))
    again = desk.send(leased(1, 4), who="through a new socket")
    assert desk.table()["limiter"]["waiting_samples"] == 1
    write(desk, 1, (0, F, 0))
    write(desk, 2, (0, M, 1))
    assert first not in desk.answers
    assert isinstance(desk.answers[again], Batch)
    assert counts(desk) == (0, 4)


def test_the_same_lease_of_two_sessions_is_two():
    desk = a_desk()
    asked = [desk.send(leased(1, 4, session=name)) for name in ("s", "z")]
    assert desk.table()["limiter"]["waiting_samples"] == 2
    write(desk, 1, (0, F, 0))
    write(desk, 2, (0, M, 1))
    assert all(isinstance(desk.answers[one], Batch) for one in asked)
    assert counts(desk) == (0, 8)


def test_a_lease_that_was_granted_and_is_asked_for_again_takes_its_own_place():
    """Its answer got lost. The limiter, shut by that very lease, must not wait for it."""
    desk = ahead()
    desk.ask(leased(1))
    assert open_sides(desk) == (False, False)
    assert isinstance(desk.ask(leased(1), who="through a new socket"), Batch)
    assert counts(desk) == (0, 16)
    desk.ask(Consume(table="t", session="s", consumed=1))
    assert counts(desk) == (16, 0)


def test_a_lease_that_is_asked_for_again_and_must_wait_is_held_by_nobody_meanwhile():
    desk = ahead(lease_s=30.0)
    desk.ask(leased(1))
    waits = desk.send(leased(1, unit=Transition(n_step=30), timeout_s=500.0))
    assert waits not in desk.answers
    assert counts(desk) == (0, 0)
    # its first answer had arrived after all
    desk.ask(Consume(table="t", session="s", consumed=1))
    assert counts(desk) == (16, 0)
    for sequence in range(6, 40):
        write(desk, sequence, (0, M, sequence))
    reply = desk.answers[waits]
    assert reply.code == InvalidRequestError.code
    assert "has acknowledged all up to 1; number leases upwards, from 2 on" in reply.message


def test_a_lease_that_was_consumed_can_not_be_had_again():
    desk = ahead()
    desk.ask(leased(3, 2))
    desk.ask(Consume(table="t", session="s", consumed=3))
    before = counts(desk)
    for lease in (1, 3):
        message = desk.refusal(leased(lease, 2))
        assert message == (
            f"lease {lease} of session 's' can't be granted: it has acknowledged all up to 3; number "
            f"leases upwards, from 4 on"
        )
    assert counts(desk) == before
    assert desk.table()["limiter"]["waiting_samples"] == 0
    assert isinstance(desk.ask(leased(4, 2)), Batch)


def test_a_stale_lease_is_refused_at_once_also_where_the_limiter_is_closed():
    desk = ahead()
    desk.ask(leased(1, 2))
    desk.ask(Consume(table="t", session="s", consumed=1))
    desk.ask(sample(14))
    assert open_sides(desk) == (True, False)
    assert "can't be granted" in desk.refusal(leased(1, 2))


def test_a_lease_without_a_session_is_refused():
    desk = ahead()
    message = desk.refusal(sample(2, lease=7))
    assert message == "lease 7 has no session; name one, or send lease 0"
    assert counts(desk) == (0, 0)


# what is used up when it is drawn ------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampler", [SamplerSpec(kind="fifo"), SamplerSpec(max_times_sampled=3), SamplerSpec(kind="lifo")]
)
def test_draws_that_use_a_start_up_are_charged_at_once(sampler):
    desk = Desk()
    desk.ask(CreateTable(table="t", spec=spec(sampler=sampler)))
    desk.ask(OpenWriter(table="t", writer="w", incarnation=1, lanes=1))
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    assert isinstance(desk.ask(leased(1, 2)), Batch)
    assert counts(desk) == ((0, 2) if sampler.uses is None else (2, 0))


# refills -------------------------------------------------------------------------------------------


def test_a_refill_is_charged_to_nobody():
    desk = ahead()
    desk.ask(leased(1, 5))
    assert isinstance(desk.ask(leased(1, 2, refill=True)), Batch)
    assert isinstance(desk.ask(sample(2, refill=True)), Batch)
    assert counts(desk) == (0, 5)
    desk.clock.now += 1.0
    assert desk.table()["samples_per_s"] == 5.0


def test_a_refill_goes_ahead_though_the_limiter_is_closed_and_others_wait():
    desk = ahead()
    desk.ask(leased(1))
    waits = [desk.send(leased(2)), desk.send(leased(1, session="another"))]
    assert open_sides(desk) == (False, False)
    assert isinstance(desk.ask(leased(1, 3, refill=True)), Batch)
    assert not desk.answers.keys() & set(waits)
    assert counts(desk) == (0, 16)


def test_a_refill_that_lacks_starts_waits_for_steps_and_lets_them_through():
    desk = ahead()
    desk.ask(leased(1))
    held = write(desk, 6, (0, M, 6))
    assert held not in desk.answers
    waits = desk.send(leased(1, 3, refill=True, unit=Transition(n_step=7), timeout_s=5.0))
    assert isinstance(desk.answers[held], Stacks)
    for sequence in (7, 8):
        assert waits not in desk.answers
        assert isinstance(desk.ask(observe(sequence, [(0, M, sequence)])), Stacks)
    assert isinstance(desk.answers[waits], Batch)
    late = desk.send(leased(1, 3, refill=True, unit=Transition(n_step=50), timeout_s=5.0))
    desk.pass_time(5.0)
    message = desk.answers[late].message
    assert "none of the 8 steps can be started from yet" in message
    assert "the 50 steps after it" in message


# who waits is told for what ------------------------------------------------------------------------


def test_time_outs_tell_of_what_is_leased():
    desk = ahead(lease_s=100.0)
    desk.ask(leased(1))
    insert = write(desk, 6, (0, M, 6), timeout_s=2.0)
    other = desk.send(sample(1, timeout_s=2.0))
    desk.pass_time(2.0)
    assert desk.answers[insert].message == (
        "'observe' at table 't' waited 2 s: 4 inserts have been made and 0 transitions drawn (16 more are "
        "leased and not yet consumed), a surplus of 8, as far ahead of samples_per_insert 4.0 as "
        "error_buffer_inserts 2.0 allows; transitions still to be consumed: 1"
    )
    assert desk.answers[other].message == (
        "'sample' at table 't' waited 2 s: 0 transitions have been drawn for 4 inserts and 16 more are "
        "leased and not yet consumed, a surplus of -8, as far ahead of samples_per_insert 4.0 as "
        "error_buffer_inserts 2.0 allows; inserts still needed: 1, which wait until 1 of the leased "
        "transitions are consumed"
    )


def test_what_a_sampler_lacks_is_told_with_numbers():
    desk = Desk()
    desk.ask(CreateTable(table="t", spec=spec(sampler=SamplerSpec(kind="fifo"))))
    desk.ask(OpenWriter(table="t", writer="w", incarnation=1, lanes=1))
    for sequence, kind in enumerate([F, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    asked = desk.send(sample(5, timeout_s=1.0))
    desk.pass_time(1.0)
    assert desk.answers[asked].message == (
        "'sample' at table 't' waited 1 s: there are 2 starts, and a batch takes 5 different ones; 3 more "
        "starts open it"
    )


def test_a_priority_wakes_who_waits_for_one_above_zero():
    desk = Desk()
    desk.ask(CreateTable(table="t", spec=spec(sampler=SamplerSpec(kind="prioritized"))))
    desk.ask(OpenWriter(table="t", writer="w", incarnation=1, lanes=1))
    for sequence, kind in enumerate([F, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    keys = np.array([0, 1])
    desk.ask(UpdatePriorities(table="t", key=keys, priority=np.zeros(2)))
    waits, late = desk.send(sample(3, timeout_s=9.0)), desk.send(sample(3, timeout_s=1.0))
    desk.pass_time(1.0)
    assert "the priorities of all 2 starts are zero" in desk.answers[late].message
    desk.ask(UpdatePriorities(table="t", key=keys, priority=np.array([0.0, 0.1])))
    assert desk.answers[waits].key.tolist() == [1, 1, 1]


# limits that change, resets ------------------------------------------------------------------------


def test_new_limits_count_what_is_leased():
    desk = ahead()
    desk.ask(leased(1))
    insert, other = write(desk, 6, (0, M, 6)), desk.send(sample(1))
    wider = LimiterSpec(min_size=2, samples_per_insert=4.0, error_buffer_inserts=3.0)
    desk.ask(SetLimiter(table="t", limiter=wider))
    assert isinstance(desk.answers[insert], Stacks)
    assert isinstance(desk.answers[other], Batch)
    assert counts(desk) == (1, 16)


def test_a_reset_forgets_what_is_leased():
    desk = ahead()
    desk.ask(leased(1))
    desk.ask(ResetTable(table="t"))
    assert counts(desk) == (0, 0)
    desk.ask(Consume(table="t", session="s", consumed=1))
    assert counts(desk) == (0, 0)
    assert desk.service.patience_s() is None


def test_a_queue_hands_out_each_start_once_and_holds_no_more_than_its_size():
    desk = Desk()
    queue = spec(sampler=SamplerSpec(kind="fifo"), limiter=LimiterSpec.queue(3))
    desk.ask(CreateTable(table="t", spec=queue))
    desk.ask(OpenWriter(table="t", writer="w", incarnation=1, lanes=1))
    handed_out, sequence = [], 0
    held = None
    for round_ in range(40):
        while held is None or held in desk.answers:
            sequence += 1
            held = write(desk, sequence, (0, F if sequence == 1 else M, sequence))
        assert desk.table()["inserts"] - len(handed_out) == 3
        size = 1 + round_ % 3
        handed_out += desk.ask(sample(size)).key.tolist()
    assert handed_out == list(range(len(handed_out)))
    assert len(handed_out) > 70
