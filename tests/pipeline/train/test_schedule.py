import math

import pytest

from transloom.pipeline.train.schedule import ScheduleConfig, ScheduleName, check_total, learning_rate

NEW = (ScheduleName.constant, ScheduleName.linear, ScheduleName.cosine, ScheduleName.warmup_stable_decay)


def rates(config: ScheduleConfig, steps, total_steps=1000) -> list[float]:
    return [learning_rate(config, step, total_steps, 512) for step in steps]


def test_the_paper_s_curves_have_not_changed_by_a_bit_and_know_no_total():
    noam = ScheduleConfig(warmup_steps=400, scale=0.7)
    fairseq = ScheduleConfig(ScheduleName.inverse_sqrt, warmup_steps=400, peak_learning_rate=3e-3)
    for total_steps in (1, 500, 10**6):
        for step in (1, 2, 399, 400, 401, 5000):
            warmup = min(step**-0.5, step * 400**-1.5)
            assert learning_rate(noam, step, total_steps, 256) == 0.7 * 256**-0.5 * warmup
            assert learning_rate(fairseq, step, total_steps, 256) == 3e-3 * 400**0.5 * warmup
    assert learning_rate(ScheduleConfig(), 4000, 10, 512) == 0.0006987712429686843


@pytest.mark.parametrize("name", NEW)
def test_the_new_curves_rise_in_a_straight_line(name):
    config = ScheduleConfig(name, warmup_steps=100, peak_learning_rate=2e-3)
    assert rates(config, [1, 25, 50, 100]) == pytest.approx([2e-5, 5e-4, 1e-3, 2e-3], rel=1e-12)


# Shares of the peak of which final_ratio=0.1 is the end, at the 1000 steps' places.
SHAPES = {
    ScheduleName.constant: {101: 1.0, 1000: 1.0, 5000: 1.0},
    ScheduleName.linear: {200: 0.9, 600: 0.5, 1100: 0.0, 5000: 0.0},
    ScheduleName.cosine: {
        350: (1 + math.sqrt(0.5)) / 2,
        600: 0.5,
        850: (1 - math.sqrt(0.5)) / 2,
        1100: 0.0,
        5000: 0.0,
    },
    ScheduleName.warmup_stable_decay: {101: 1.0, 880: 1.0, 935: 0.5, 1100: 0.0, 5000: 0.0},
}


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("final_ratio", [0.0, 0.1, 1.0])
def test_the_new_curves_fall_from_the_peak_to_the_final_ratio(name, final_ratio):
    config = ScheduleConfig(name, warmup_steps=100, peak_learning_rate=2e-3, final_ratio=final_ratio, decay_share=0.2)
    ratio = 1.0 if name is ScheduleName.constant else final_ratio
    expected = [2e-3 * (ratio + (1 - ratio) * share) for share in SHAPES[name].values()]
    assert rates(config, SHAPES[name], 1100) == pytest.approx(expected, rel=1e-12, abs=1e-18)
    everything = rates(config, range(100, 1101), 1100)
    assert everything == sorted(everything, reverse=True)


@pytest.mark.parametrize("name", NEW[1:])
def test_another_total_is_another_curve_from_the_same_step_on(name):
    config = ScheduleConfig(name, warmup_steps=100, final_ratio=0.0)
    short, longer = (learning_rate(config, 950, total, 512) for total in (1000, 4000))
    assert short < longer <= config.peak_learning_rate
    assert learning_rate(config, 4000, 4000, 512) == 0.0


def test_a_curve_that_is_all_warm_up_or_all_decay():
    rise = ScheduleConfig(ScheduleName.cosine, warmup_steps=10, peak_learning_rate=1.0)
    check_total(rise, 10)
    assert rates(rise, [9, 10], 10) == [0.9, 1.0]
    fall = ScheduleConfig(ScheduleName.warmup_stable_decay, 1, peak_learning_rate=1.0, final_ratio=0.0, decay_share=0.9)
    check_total(fall, 10)
    assert rates(fall, [1, 10], 10) == [1.0, 0.0]


@pytest.mark.parametrize("name", NEW)
def test_a_warm_up_beyond_the_end_is_refused(name):
    config = ScheduleConfig(name, warmup_steps=101)
    with pytest.raises(ValueError, match=r"^warmup_steps: "):
        check_total(config, 100)
    if name is not ScheduleName.warmup_stable_decay:
        check_total(config, 101)


def test_the_paper_s_curves_may_end_while_they_rise():
    check_total(ScheduleConfig(), 20)
    check_total(ScheduleConfig(ScheduleName.inverse_sqrt), 20)


def test_a_decay_that_begins_in_the_warm_up_is_refused():
    config = ScheduleConfig(ScheduleName.warmup_stable_decay, warmup_steps=100, decay_share=0.5)
    check_total(config, 200)
    with pytest.raises(ValueError, match=r"^decay_share: "):
        check_total(config, 199)


@pytest.mark.parametrize(
    "field", [{"final_ratio": -0.1}, {"final_ratio": 1.1}, {"decay_share": 0.0}, {"decay_share": 1.1}]
)
def test_impossible_settings_are_refused(field):
    with pytest.raises(ValueError, match=rf"^{next(iter(field))}: "):
        ScheduleConfig(**field)
