"""What the controller decides: placement by free cache, the passes that all ranks run, and what an end frees."""

import pytest

from seektune.generate.capacity import UNLIMITED, CacheRoom
from seektune.generate.controller import Controller
from seektune.generate.plan import StepReport
from seektune.generate.prefix_cache import PrefixPlaces
from seektune.generate.request import Request, Token
from seektune.model.kv_cache.size import CacheSize


def asked(*sizes: int) -> list[Request]:
    """Requests of that many times 256 tokens in all."""
    return [Request([0], 256 * size - 1) for size in sizes]


def ranks_of(controller: Controller) -> dict[int, int]:
    return {each.number: each.rank for each in controller.plan().admitted}


def token(number: int, end: str | None = None) -> Token:
    return Token(number, 5, -1.0, [], end)


def report(*tokens: Token, running: int = 0, prefilling: bool = False, error: Exception | None = None) -> StepReport:
    return StepReport(tokens, running, prefilling, error=error)


def test_sequences_are_placed_by_free_cache_and_not_by_turns():
    controller = Controller([UNLIMITED] * 2)
    assert controller.add(asked(10, 100, 20, 30)) == [0, 1, 2, 3]
    assert ranks_of(controller) == {0: 1, 1: 0, 2: 1, 3: 1}
    controller.add(asked(39, 1000, 2))
    assert ranks_of(controller) == {4: 0, 5: 1, 6: 0}


def test_an_ended_sequence_frees_its_cache():
    controller = Controller([UNLIMITED] * 2)
    controller.add(asked(100, 60))
    controller.plan()
    controller.record([report(token(0, "stop")), report(token(1), running=1)])
    controller.add(asked(50))
    assert ranks_of(controller) == {2: 0}
    controller.retire(1)
    controller.add(asked(5))
    assert ranks_of(controller) == {3: 1}


def test_sequences_wait_for_room_and_none_overtakes():
    controller = Controller([UNLIMITED] * 2, max_num_seqs=2)
    controller.add(asked(9, 9, 9, 9))
    assert ranks_of(controller) == {0: 0, 1: 1}
    controller.record([report(token(0), running=1), report(token(1), running=1)])
    assert ranks_of(controller) == {}
    controller.record([report(token(0), running=1), report(token(1, "stop"))])
    assert ranks_of(controller) == {2: 1}
    controller.record([report(token(0, "stop")), report(token(2, "stop"))])
    assert not controller.done
    assert ranks_of(controller) == {3: 0}


def test_ranks_prefill_and_decode_together_or_not_at_all():
    controller = Controller([UNLIMITED] * 2)
    controller.add(asked(9))
    plan = controller.plan()
    assert (plan.decode, plan.prefill) == (False, True)
    controller.record([report(prefilling=True), report()])
    plan = controller.plan()
    assert (plan.decode, plan.prefill, list(plan.admitted)) == (False, True, [])
    controller.record([report(token(0), running=1), report()])
    plan = controller.plan()
    assert (plan.decode, plan.prefill) == (True, False)
    controller.record([report(token(0, "length")), report()])
    assert controller.done
    plan = controller.plan()
    assert (plan.decode, plan.prefill) == (False, False)


def test_a_retired_sequence_is_named_once_and_its_late_tokens_change_nothing():
    controller = Controller([UNLIMITED] * 1)
    controller.add(asked(9, 9))
    controller.plan()
    controller.retire(0)
    controller.retire(0)
    controller.retire(7)
    assert list(controller.plan().retired) == [0]
    controller.record([report(token(0, "stop"), token(1), running=1)])
    assert not controller.done
    assert list(controller.plan().retired) == []


def test_a_sequence_that_ends_before_it_begins_is_never_sent():
    controller = Controller([UNLIMITED] * 1)
    controller.add(asked(9, 9))
    assert controller.retire(1)
    assert not controller.retire(1)
    plan = controller.plan()
    assert [each.number for each in plan.admitted] == [0]
    assert list(plan.retired) == []


def test_the_error_of_any_rank_is_raised():
    controller = Controller([UNLIMITED] * 2)
    controller.add(asked(9))
    with pytest.raises(ArithmeticError, match="logits are NaN"):
        controller.record([report(), report(error=ArithmeticError("the model's logits are NaN"))])


def room(tokens: int) -> CacheRoom:
    """Memory for so many times 256 tokens, and the copy."""
    return CacheRoom(CacheSize(0, {1: 1}), 2 * 256 * tokens, 2**20, 0, grows=True)


def test_sequences_wait_for_free_cache_and_none_overtakes():
    controller = Controller([room(8), room(4)])
    controller.add(asked(4, 8, 2, 1))
    assert ranks_of(controller) == {0: 1, 1: 0}
    assert ranks_of(controller) == {}
    controller.record([report(token(1), running=1), report(token(0, "stop"))])
    assert ranks_of(controller) == {2: 1, 3: 1}


def test_sequences_that_run_together_each_take_the_cache_of_the_longest():
    controller = Controller([room(8)])
    controller.add(asked(4, 1, 1))
    assert ranks_of(controller) == {0: 0, 1: 0}


def test_a_sequence_that_can_never_fit_is_refused_and_none_is_added():
    controller = Controller([room(4), room(8), room(8), room(8)], stages=2)
    controller.add(asked(8))
    with pytest.raises(
        ValueError, match=r"up to 4,096 tokens needs 8.19 kB .* but 4.10 kB are free beside the weights"
    ):
        controller.add(asked(1, 16))
    assert ranks_of(controller) == {0: 1}
    assert not controller.plan().admitted


def test_the_message_is_about_the_pipeline_stage_that_lacks_room():
    controller = Controller([room(64), room(64), room(4), room(8)], stages=2)
    with pytest.raises(ValueError, match=r"needs 8.19 kB .* but 4.10 kB are free"):
        controller.add(asked(16))


def test_a_waiting_prompt_is_compared_with_earlier_ones_once(monkeypatch: pytest.MonkeyPatch):
    compared: list[int] = []
    places = PrefixPlaces(3)
    monkeypatch.setattr(places, "saved", lambda prompt: compared.append(prompt[0]) or {})
    controller = Controller([room(8)] * 2, prefixes=places)
    controller.add([Request([i], 255) for i in range(40)])
    controller.plan()
    assert len(compared) == len(set(compared)) <= 40


def test_a_pipeline_of_two_stages_steps_two_equal_groups_in_turn_and_the_next_plan_brings_the_tokens():
    controller = Controller([UNLIMITED] * 2, stages=2)
    controller.add(asked(9, 9, 9))
    plans = [controller.plan()]
    controller.record([report(), report()])
    plans.append(controller.plan())
    controller.record([report(), report(token(0), token(1), running=2)])
    assert [plan.group for plan in plans] == [0, 1]
    assert [[each.number for each in plan.admitted] for plan in plans] == [[0, 1], [2]]
    plan = controller.plan()
    assert (plan.group, plan.decode, plan.prefill) == (0, True, False)
    assert [each.request for each in plan.sampled] == [0, 1]
    controller.retire(0)
    controller.record([report(), report(token(2, "stop"))])
    plan = controller.plan()
    assert (plan.group, plan.decode, list(plan.retired), [each.request for each in plan.sampled]) == (1, False, [], [2])
    assert controller.record([report(), report(token(0), token(1), running=2)]) == [token(1)]
    plan = controller.plan()
    assert (plan.group, list(plan.retired), [each.request for each in plan.sampled]) == (0, [0], [0, 1])
