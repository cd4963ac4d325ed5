"""Settings of the papers, and the weights that come with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_env import TinyEnv, tiny_problem
from tiny_policies import SITUATIONS, answers, new
from torch import nn

from icl_optimizer.baselines.drl import DrlPolicy
from icl_optimizer.baselines.drl_config import PRESETS, DqnConfig, preset
from icl_optimizer.baselines.weights import (
    SHIPPED,
    Case,
    Entry,
    find,
    misfit,
    problem_identity,
    read_index,
)
from icl_optimizer.cli import app, expand_lists
from icl_optimizer.comparison.config import ComparisonConfig
from icl_optimizer.comparison.runner import compare
from icl_optimizer.comparison.shipping import make_weights
from icl_optimizer.environments.registry import make
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.policies import get_policy_spec, make_policy
from icl_optimizer.report import write_report
from icl_optimizer.report.formatting import MISSING
from icl_optimizer.report.loading import load_run
from icl_optimizer.report.measures import shipped_note
from icl_optimizer.report.summary import key_table

ENVIRONMENT, BUDGET = "slo-scheduling", 40
SETTINGS: dict[str, Any] = {"horizon": "5"}
ENTRIES = [entry for place in SHIPPED.iterdir() for entry in read_index(place)]


def test_dqn_has_the_settings_of_table_one() -> None:
    config = preset("dqn-paper", "slo-scheduling")
    assert isinstance(config, DqnConfig)
    assert (config.buffer_size, config.batch_size, config.hidden) == (50_000, 32, (128, 128))
    assert (config.learning_rate, config.gamma, config.activation) == (1e-3, 0.99, "relu")
    started = config.learning_starts
    assert config.epsilon(started) == pytest.approx(0.1 - 0.05 * started / 10_000)
    assert config.epsilon(10_000) == pytest.approx(0.05)
    spec = get_policy_spec("dqn-paper")
    assert spec.budget_in("slo-scheduling", {"horizon": 9}) == 10_000
    assert (spec.envs_in("slo-scheduling"), spec.envs_in("load-balancing")) == (1, 64)


@pytest.mark.parametrize("name", ["dqn-paper", "ppo-paper", "a2c-paper"])
def test_load_balancing_has_the_settings_of_its_paper(name: str) -> None:
    config = preset(name, "load-balancing")
    assert (config.hidden, config.activation) == ((128, 128), "relu")
    assert (config.learning_rate, config.gamma) == (3e-4, 0.99)
    spec = get_policy_spec(name)
    budgets = [spec.budget_in("load-balancing", {"scenario": s}) for s in ("nominal", "high-load")]
    assert budgets == ([100_000] * 2 if name == "a2c-paper" else [200_000, 400_000])


def test_a_paper_without_the_policy_is_named() -> None:
    problem = make(ENVIRONMENT, 1).problem
    with pytest.raises(ConfigurationError, match="asked about 'slo-scheduling'; allowed: load-bal"):
        make_policy("ppo-paper", problem)
    with pytest.raises(ConfigurationError, match="'tiny'; allowed: slo-scheduling, load-balancing"):
        DrlPolicy(tiny_problem(), name="dqn-paper")
    with pytest.raises(ConfigurationError, match="Did you mean 'dqn-paper'"):
        preset("dqn-papr", "tiny")


def test_settings_that_no_paper_has_hold_everywhere() -> None:
    for name, config in PRESETS.items():
        assert preset(name, "tiny") == preset(name, "slo-scheduling") == config


@pytest.mark.parametrize("name", ["dqn", "ppo", "a2c"])
def test_the_activation_is_that_of_the_configuration(name: str) -> None:
    def kinds(**settings: Any) -> set[type]:
        policy = new(name, **settings)
        assert isinstance(policy, DrlPolicy)
        parts = policy.model.policy.modules()
        return {type(part) for part in parts if isinstance(part, nn.ReLU | nn.Tanh)}

    assert kinds() == {nn.ReLU if name == "dqn" else nn.Tanh}
    assert kinds(activation="relu") == {nn.ReLU}
    assert kinds(activation="tanh") == {nn.Tanh}
    with pytest.raises(ConfigurationError, match="activation is 'gelu'"):
        new(name, activation="gelu")


@pytest.mark.parametrize("name", ["dqn", "ppo", "a2c"])
def test_the_deciding_part_alone_decides_alike(name: str, tmp_path: Path) -> None:
    policy = new(name, TinyEnv(2), seed=1).learn(64)
    assert isinstance(policy, DrlPolicy)
    policy.save(tmp_path / "whole")
    policy.save(tmp_path / "part", actor_only=True)
    size = {part: (tmp_path / part).stat().st_size for part in ("whole", "part")}
    assert size["part"] < 0.55 * size["whole"]
    loaded = new(name, TinyEnv(2), seed=7).load(tmp_path / "part")
    for a, b in zip(policy.decide(SITUATIONS), loaded.decide(SITUATIONS), strict=True):
        assert (a.action, a.probabilities) == (b.action, b.probabilities)
    assert (loaded.num_timesteps, loaded.seed) == (64, 1)
    # saved again it is as small, and a file saved whole brings everything back
    loaded.save(tmp_path / "again", actor_only=name == "dqn")
    assert (tmp_path / "again").stat().st_size == size["part"]
    assert new(name, TinyEnv(2)).load(tmp_path / "whole").learn(16).num_timesteps == 80


def test_learning_on_needs_a_critic(tmp_path: Path) -> None:
    for name in ("dqn", "ppo", "a2c"):
        policy = new(name, TinyEnv(2)).learn(32)
        assert isinstance(policy, DrlPolicy)
        policy.save(tmp_path / name, actor_only=True)
    for name in ("ppo", "a2c"):
        loaded = new(name, TinyEnv(2)).load(tmp_path / name)
        with pytest.raises(ConfigurationError, match="without critic and cannot learn on; allowed"):
            loaded.learn(16)
    dqn = new("dqn", TinyEnv(2)).load(tmp_path / "dqn")
    assert isinstance(dqn, DrlPolicy)
    state = dqn.model.policy.state_dict()
    for key in (key for key in state if key.startswith("q_net.")):
        assert (state[key] == state[f"q_net_target.{key[6:]}"]).all()
    assert answers(dqn.learn(16))
    assert dqn.num_timesteps == 48


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with weights of one policy and two seeds."""
    out = tmp_path_factory.mktemp("weights")
    make_weights(ENVIRONMENT, out, **CASES)
    return out


CASES: dict[str, Any] = {
    "policies": ["dqn"],
    "seeds": 2,
    "settings": SETTINGS,
    "interactions": BUDGET,
    "progress_bar": False,
}


def case(**fields: Any) -> Case:
    usual = {
        "environment": ENVIRONMENT,
        "settings": SETTINGS,
        "policy": "dqn",
        "seed": 0,
        "interactions": BUDGET,
    }
    return Case(**usual | fields)


def test_weights_are_found_for_exactly_their_case(made: Path) -> None:
    found = find(case(), made)
    assert found is not None
    entry, path = found
    assert path.parent.name == ENVIRONMENT
    assert path.name == entry.file == case().file
    # the number 5, given as a text above
    assert find(case(settings={"horizon": 5, "arrival_rate": 1.0}), made) == found
    for other in (
        {"settings": {}},
        {"settings": {"horizon": 5, "arrival_rate": 2.0}},
        {"policy": "dqn-tuned"},
        {"seed": 2},
        {"interactions": BUDGET + 1},
    ):
        assert find(case(**other), made) is None
        assert case(**other).file != path.name
    assert find(case(environment="offloading", settings={}), made) is None


def test_the_index_says_what_made_a_file(made: Path) -> None:
    entry = read_index(made / ENVIRONMENT)[1]
    assert (entry.policy, entry.seed, entry.interactions) == ("dqn", 1, BUDGET)
    assert entry.policy_settings == PRESETS["dqn"].model_dump(mode="json")
    assert (entry.settings, entry.parameters["horizon"]) == (SETTINGS, 5)
    assert entry.problem == problem_identity(make(ENVIRONMENT).problem)
    # the folder on this machine is nobody's business
    assert entry.command == (
        "icl-optimizer weights slo-scheduling --policies dqn --seeds 2 --drl-interactions 40 "
        f"--set horizon=5 --out {made.name}"
    )


def test_the_command_makes_them_and_keeps_what_is_there(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = read_index(made / ENVIRONMENT)[0].command.split()[1:-1]
    app(expand_lists([*command, str(tmp_path), "--quiet"]), standalone_mode=False)
    assert "2 files" in capsys.readouterr().out
    wanted = {path.name: path.read_bytes() for path in (made / ENVIRONMENT).glob("*.safetensors")}
    place = tmp_path / ENVIRONMENT
    files = {path.name: path for path in place.glob("*.safetensors")}
    assert {name: path.read_bytes() for name, path in files.items()} == wanted
    lost, kept = (case(seed=seed).file for seed in (0, 1))
    files[lost].unlink()
    before = files[kept].stat().st_mtime_ns
    make_weights(ENVIRONMENT, tmp_path, **CASES)
    assert files[kept].stat().st_mtime_ns == before
    assert files[lost].read_bytes() == wanted[lost]


def test_what_no_longer_fits_is_made_again(made: Path, tmp_path: Path) -> None:
    place = tmp_path / ENVIRONMENT
    place.mkdir()
    entry = read_index(made / ENVIRONMENT)[0]
    (place / "dqn-0ld-seed0.safetensors").write_bytes(b"")
    edit(place, entry, file="dqn-0ld-seed0.safetensors", parameters={"horizon": 4})
    make_weights(ENVIRONMENT, tmp_path, **CASES | {"seeds": 1})
    assert read_index(place) == [entry.model_copy(update={"command": read_index(place)[0].command})]
    assert [path.name for path in place.glob("*.safetensors")] == [entry.file]


def edit(place: Path, entry: Entry, **fields: Any) -> None:
    """Write an index with ``entry`` alone, changed."""
    changed = json.loads(entry.model_dump_json()) | fields
    (place / "index.json").write_text(json.dumps([changed]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policies": ["random"]}, "'random' has no weights; allowed: deep-RL policies"),
        ({"policies": ["dqn", "ppo-paper"]}, "'ppo-paper' was asked about 'slo-scheduling'"),
        ({"policies": []}, "no policies are given"),
        ({"settings": {"horizn": 5}}, "Did you mean 'horizon'"),
    ],
)
def test_wrong_requests_make_nothing(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_weights(ENVIRONMENT, tmp_path / "out", **CASES | fields)
    assert not (tmp_path / "out").exists()


def run(place: Path, **fields: Any) -> Path:
    usual: dict[str, Any] = {
        "environment": ENVIRONMENT,
        "settings": SETTINGS,
        "policies": ("dqn", "random"),
        "seeds": 2,
        "interactions": 2,
        "drl_interactions": BUDGET,
        "eval_tasks": 20,
    }
    return compare(ComparisonConfig(**usual | fields), place, progress_bar=False)


def table(place: Path, name: str = "results.csv") -> pd.DataFrame:
    found = pd.read_csv(place / name)
    return found[found.policy == "dqn"].drop(columns="llm")


def test_a_comparison_takes_shipped_weights(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = run(tmp_path / "trained", train=True)
    monkeypatch.setattr("icl_optimizer.baselines.weights.index.SHIPPED", made)
    taken = run(tmp_path / "taken")
    anew = run(tmp_path / "anew", train=True)
    assert (anew / "results.csv").read_bytes() == (trained / "results.csv").read_bytes()
    # weights that were trained alike decide alike
    final = table(trained)[(table(trained).split == "eval") & (table(trained).step == BUDGET)]
    mine = table(taken)
    pd.testing.assert_frame_equal(
        mine[mine.split == "eval"].reset_index(drop=True), final.reset_index(drop=True)
    )
    learning = mine[mine.split == "train"].groupby("metric").value.unique().to_dict()
    assert learning == {"interactions": [BUDGET], "shipped_weights": [1.0]}
    assert "train_s" not in set(table(taken, "timings.csv").metric)
    assert "train_s" in set(table(anew, "timings.csv").metric)
    for place, flag in ((taken, False), (anew, True)):
        data = json.loads((place / "config.json").read_text())
        assert data["config"]["train"] is flag
        assert ("--train" in data["command"]) is flag


def test_the_report_says_that_weights_were_shipped(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icl_optimizer.baselines.weights.index.SHIPPED", made)
    quick: dict[str, Any] = {"interactions": 1, "eval_tasks": 5, "sweeps": False}
    note = "Weights shipped with the package: dqn"
    place = run(tmp_path / "run", **quick)
    assert shipped_note(load_run(place)).startswith(f"{note}. They were trained before")
    assert f"{note}." in write_report(place).read_text()
    found = key_table(load_run(place))
    (dqn,) = (dict(zip(found.header, row, strict=True)) for row in found.rows if row[0] == "dqn")
    assert dqn["optimality at own budget"].endswith(f"at\N{NO-BREAK SPACE}{BUDGET}")
    # nobody knows how it was after one decision, or how soon it learned
    assert dqn["optimality at\N{NO-BREAK SPACE}1"] == MISSING
    assert "interactions to 95 %" not in dqn
    # a third seed has to be trained
    mixed = run(tmp_path / "mixed", seeds=3, policies=("dqn",), **quick)
    assert shipped_note(load_run(mixed)).startswith(f"{note} (seeds 0, 1). They")
    trained = run(tmp_path / "new", train=True, seeds=1, policies=("dqn",), **quick)
    assert shipped_note(load_run(trained)) == ""


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({"probe": [9.0] * 12}, "other dynamics or data"),
        ({"problem": "another"}, "other labels or columns"),
        ({"policy_settings": {"gamma": 0.5}}, "other settings of 'dqn'"),
    ],
)
def test_stale_weights_are_refused_before_any_work(
    fields: dict[str, Any],
    changed: str,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "weights" / ENVIRONMENT).mkdir(parents=True)
    entry = read_index(made / ENVIRONMENT)[0]
    assert misfit(entry) is None
    edit(tmp_path / "weights" / ENVIRONMENT, entry, **fields)
    monkeypatch.setattr("icl_optimizer.baselines.weights.index.SHIPPED", tmp_path / "weights")
    with pytest.raises(ConfigurationError, match=f"{changed}; allowed: --train, or new weights by"):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('[{"file": 3}]')
    with pytest.raises(ConfigurationError, match=r"index\.json' cannot be read"):
        read_index(tmp_path)


def test_policies_of_other_environments_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'always-local' was asked about 'slo-scheduling'"):
        run(tmp_path / "run", policies=("random", "always-local"))
    assert not (tmp_path / "run").exists()


def test_every_shipped_file_is_in_its_index() -> None:
    files = {path.relative_to(SHIPPED).as_posix() for path in SHIPPED.rglob("*.safetensors")}
    assert files == {f"{entry.environment}/{entry.file}" for entry in ENTRIES}
    assert files


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.file)
def test_shipped_weights_fit_the_present_environment(entry: Entry) -> None:
    changed = misfit(entry)
    assert changed is None, f"{entry.environment} has other {changed}; run: {entry.command}"
    env = make(entry.environment, 2, **entry.settings)
    policy = make_policy(entry.policy, env.problem, seed=99).load(
        SHIPPED / entry.environment / entry.file
    )
    assert (policy.seed, policy.num_timesteps) == (entry.seed, entry.interactions)
    observation, _ = env.reset(seed=0)
    assert np.isin(policy.predict(observation)[0], range(len(env.problem.labels))).all()
    mine = Case(entry.environment, entry.settings, entry.policy, entry.seed, entry.interactions)
    assert find(mine) == (entry, SHIPPED / entry.environment / entry.file)


def test_parameters_added_since_leave_shipped_weights_valid() -> None:
    entry = read_index(SHIPPED / ENVIRONMENT)[0]
    older = {k: v for k, v in entry.parameters.items() if k not in ("servers", "cancel_late")}
    before = entry.model_copy(update={"parameters": older})
    case = Case(ENVIRONMENT, {}, entry.policy, entry.seed, entry.interactions)
    assert before.is_of(case)
    assert misfit(before) is None
    other = Case(ENVIRONMENT, {"cancel_late": True}, *(entry.policy, entry.seed, BUDGET))
    assert not before.is_of(other)
