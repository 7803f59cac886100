import pytest
from bertron_loadtest.phases import Phase, is_saturated, plan_phases


def planned(shape, **changes):
    return plan_phases(shape, **({"users": 32, "seconds": 60, "warm_up_s": 3} | changes))


def test_steady_and_soak_are_one_phase_after_the_warm_up():
    assert planned("steady") == [Phase("warm-up", 32, 3), Phase("steady", 32, 60)]
    assert planned("soak", warm_up_s=0) == [Phase("soak", 32, 60)]


@pytest.mark.parametrize("shape", ["steady", "soak", "ramp"])
def test_one_user_is_a_load(shape):
    (phase,) = planned(shape, users=1, warm_up_s=0)
    assert (phase.users, phase.seconds) == (1, 60)


def test_a_ramp_doubles_up_to_all_users():
    phases = planned("ramp", users=20, seconds=12, warm_up_s=1)
    assert [phase.users for phase in phases] == [1, 1, 2, 4, 8, 16, 20]
    assert [phase.name for phase in phases[1:3]] == ["1 users", "2 users"]
    assert {phase.seconds for phase in phases[1:]} == {2}


def test_a_spike_is_ten_times_what_is_around_it():
    assert planned("spike", users=4)[1:] == [
        Phase("before", 4, 20),
        Phase("spike", 40, 20),
        Phase("after", 4, 20),
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"users": 0}, "0 users"),
        ({"seconds": 0}, "for 0 s"),
        ({"warm_up_s": -1}, "after -1 s"),
        ({"shape": "flat"}, "one of steady, ramp, spike, soak"),
    ],
)
def test_other_loads_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        planned(changes.pop("shape", "steady"), **changes)


@pytest.mark.parametrize(
    ("rates", "is_over"),
    [
        ([], False),
        ([100], False),
        ([100, 100, 100], False),
        ([100, 100, 100, 104], True),  # three steps with less than 5 % more than the best before
        ([100, 100, 100, 106], False),
        ([136, 136, 138, 194], False),  # batches form from eight users on
        ([100, 190, 195, 198, 190], True),
        ([100, 190, 200, 190, 180], False),
        ([100, 190, 170, 150, 140], True),
    ],
)
def test_a_ramp_ends_where_more_users_bring_no_more(rates, is_over):
    assert is_saturated(rates) is is_over
