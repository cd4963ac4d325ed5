"""What the papers report beside what the parts measured, and why the two differ."""

from __future__ import annotations

from icl_optimizer.report.formatting import MISSING
from icl_optimizer.studies.published import BALANCING, SCHEDULING
from icl_optimizer.studies.reproduction_claims import Claim, System

SAME = "as for PPO"
FEWER = "loads as for PPO; with fewer decisions it tends to send all requests to one server"
LIGHT = "one public hour instead of a week; servers with parallel slots are hardly loaded"


def _late(scenario: str) -> list[Claim]:
    """Return the rows on late responses in a scenario of load balancing."""
    rows = [("ppo-paper", f"ppo-{scenario}", "measures", LIGHT)]
    others = [name for name in BALANCING[scenario] if name != "ppo-paper"]
    rows += [
        (name, "balancing", scenario, FEWER if name == "a2c-paper" else SAME) for name in others
    ]
    return [
        Claim(
            f"`{policy}`, {scenario}: late, %; mean response, s",
            f"{100 * BALANCING[scenario][policy].late:.1f}; "
            f"{BALANCING[scenario][policy].response_s:.2f}",
            part,
            f"{{{table}|{policy}|late, %}}; {{{table}|{policy}|mean response, s}}",
            why,
        )
        for policy, part, table, why in rows
    ]


def _met(policy: str, why: str) -> Claim:
    """Return the row on deadlines that a policy met."""
    rates = ("λ = 1", "λ = 2")
    told = ", ".join(f"{SCHEDULING[policy, float(rate[4:])]:.2f}" for rate in rates)
    ours = ", ".join(f"{{rates|{policy} deadline_met|{rate}}}" for rate in rates)
    what = f"`{policy}`: deadlines met at λ = 1 and 2 (Fig. 3b)"
    return Claim(what, told, "scheduling", ours, why)


OFFLOADING = System(
    "offloading",
    "Offloading",
    "systems/offloading.md",
    "Zhou et al. 2024. The paper gives curves and sentences, no tables.",
    (
        Claim(
            "reward of regular and of quality-preferred tasks (Fig. 5(a))",
            "both converge; ICL is comparable to DRL",
            "offloading",
            "`icl` {policies|icl|regular tasks} and {policies|icl|quality tasks}, `dqn` "
            "{policies|dqn|regular tasks} and {policies|dqn|quality tasks}",
        ),
        Claim(
            "success rate of quality tasks (Fig. 5(b))",
            "ICL offloads quality tasks properly",
            "offloading",
            "`icl` {policies|icl|success rate}, `icl-paper` {policies|icl-paper|success rate}, "
            "`dqn` {policies|dqn|success rate}",
            "ε is not published; the literal rule 2 keeps the luckiest reward under noise",
        ),
        Claim(
            "prioritized replay, reward (Fig. 5(c))",
            "close to DRL",
            "offloading",
            "`icl` {policies|icl|reward}, `icl-paper` {policies|icl-paper|reward}, `dqn` "
            "{policies|dqn|reward}",
            "as above",
        ),
        Claim(
            "latest experience; no exploration, reward (Fig. 5(c))",
            "lower",
            "offloading",
            "`icl-latest` {policies|icl-latest|reward}, `icl-greedy` {policies|icl-greedy|reward}",
        ),
        Claim(
            "delay over 5, 20 and 60 users, s (Fig. 5(d))",
            "not flat",
            "offloading",
            "{delays|llama3-8b + llama3-70b|users 5}, {delays|llama3-8b + llama3-70b|users 20}, "
            "{delays|llama3-8b + llama3-70b|users 60}",
            "the radio takes 2 to 18 ms, generation 14 s and more",
        ),
        Claim(
            "delay over 250, 1,000 and 2,000 output tokens, s (Fig. 5(e))",
            "a curve",
            "offloading",
            "{delays|llama3-8b + llama3-70b|mean tokens 250}, "
            "{delays|llama3-8b + llama3-70b|mean tokens 1000}, "
            "{delays|llama3-8b + llama3-70b|mean tokens 2000}",
        ),
        Claim(
            "delay without, with half and with only quality tasks, s (Fig. 5(f))",
            "more quality tasks, more delay; Gemma 7B + Gemini 1.5 Pro is the fastest pair",
            "offloading",
            (
                "that pair {delays|gemma-7b + gemini-1.5-pro|quality share 0.0}, "
                "{delays|gemma-7b + gemini-1.5-pro|quality share 0.5}, "
                "{delays|gemma-7b + gemini-1.5-pro|quality share 1.0}; Llama3 "
                "{delays|llama3-8b + llama3-70b|quality share 0.0}, "
                "{delays|llama3-8b + llama3-70b|quality share 0.5}, "
                "{delays|llama3-8b + llama3-70b|quality share 1.0}"
            ),
        ),
        Claim(
            "balanced accuracy on new words, half of the tasks quality-preferred",
            MISSING,
            "open",
            "`icl` {words|icl|50 %}, `embedding-minilm` {words|embedding-minilm|50 %}, `bandit` "
            "{words|bandit|50 %}",
            "not in the paper",
        ),
        Claim(
            "optimality after 300 decisions, congested",
            MISSING,
            "congested",
            "`icl` {policies|icl|optimality after 300 decisions}, `dqn-tuned` "
            "{policies|dqn-tuned|optimality after 300 decisions}",
            "not in the paper",
        ),
    ),
)
SCHEDULING_SYSTEM = System(
    "slo-scheduling",
    "Scheduling before deadlines",
    "systems/slo-scheduling.md",
    "Mekrache et al. 2025, on a simulator instead of four GPUs.",
    (
        _met(
            "dqn-paper",
            "with Table I it explores too little to learn enough in 10,000 decisions here",
        ),
        _met("round-robin", "lengths were chosen so that the first of these comes out"),
        _met(
            "random",
            "with queues that drain, random loses less than half of the tasks at λ = 1",
        ),
        Claim(
            "`icl-predict`, 500 decisions: deadlines met at λ = 1 and 2",
            MISSING,
            "scheduling",
            "{rates|icl-predict deadline_met|λ = 1}, {rates|icl-predict deadline_met|λ = 2}",
            "not in the paper",
        ),
        Claim(
            "score of a task at λ = 1 (Fig. 3a): DQN, round robin, `icl-predict`",
            "a curve",
            "scheduling",
            "{rates|dqn-paper score|λ = 1}, {rates|round-robin score|λ = 1}, "
            "{rates|icl-predict score|λ = 1}",
            "as above",
        ),
        Claim(
            "verdicts on servers never seen: language model, mean of the known, regression on "
            "numbers",
            MISSING,
            "cold-start",
            "{verdicts|server language model, most alike|share right}, "
            "{verdicts|server mean at the same queue|share right}, "
            "{verdicts|server regression on numbers|share right}",
            "not in the paper",
        ),
    ),
)
BALANCING_SYSTEM = System(
    "load-balancing",
    "Load balancing",
    "systems/load-balancing.md",
    "Abbaraju 2025, tables I and II. Published rewards cannot come from the printed components.",
    (
        *_late("nominal"),
        *_late("high-load"),
        Claim(
            "late, %, where least loaded is late for 40 %: `ppo-tuned`, least loaded, `sacrifice`",
            MISSING,
            "balancing",
            "{calibrated|ppo-tuned|late, %}, {calibrated|least-loaded|late, %}, "
            "{calibrated|sacrifice|late, %}",
            "a scenario of ours, since simple rules leave nothing to learn in the paper's",
        ),
    ),
)
ROUTING_SYSTEM = System(
    "qos-routing",
    "QoS routing",
    "systems/qos-routing.md",
    "Yang et al. 2025. Only the paper's abstract was at hand, so no published number stands here.",
    (
        Claim(
            "quality of service per request at λ = 3: PPO with the graph, without it",
            MISSING,
            "routing",
            "{loads|han-ppo|λ = 3}, {loads|mlp-ppo|λ = 3}",
        ),
        Claim(
            "the same: the best rule, `icl-predict`",
            MISSING,
            "routing",
            "{loads|impact-greedy|λ = 3}, {loads|icl-predict|λ = 3}",
        ),
        Claim(
            "simulator against measured servers, held out: time between tokens, throughput",
            MISSING,
            "inference",
            "{errors|all|time between tokens, held out}, {errors|all|throughput, held out}",
        ),
    ),
)
SPLITTING_SYSTEM = System(
    "layer-splitting",
    "Layer splitting",
    "systems/layer-splitting.md",
    "Chen et al. 2024, on a model of 135 M parameters instead of 7 billion.",
    (
        Claim(
            "reward without a surrogate, with Algorithm 1 (Table IV)",
            "2.9736, 2.9663",
            "splitting",
            "{cost|reward after 24,000 decisions|without a surrogate}, "
            "{cost|reward after 24,000 decisions|Algorithm 1}",
            "another model and another scale of rewards",
        ),
        Claim(
            "time of learning with the real model (Table IV)",
            "> 24 days, 7.7 min",
            "splitting",
            "{cost|with the live model*|without a surrogate}, "
            "{cost|with the live model*|Algorithm 1} (multiplied, not run)",
            "a smaller model",
        ),
        Claim(
            "memory in MB: without a surrogate, Algorithm 1, surrogate alone (Table IV)",
            "16.3 GB without, less than 1 GB with one",
            "splitting",
            (
                "{cost|memory in MB, of the live model where it is asked|without a surrogate}, "
                "{cost|memory in MB, of the live model where it is asked|Algorithm 1}, "
                "{cost|memory in MB, of the live model where it is asked|"
                "surrogate of the shipped records}"
            ),
            "a smaller model",
        ),
        Claim(
            "PPO, A2C, DQN with the paper's settings, case A (Fig. 5)",
            "PPO ahead",
            "splitting",
            "{cases|ppo-paper|optimality, case A}, {cases|a2c-paper|optimality, case A}, "
            "{cases|dqn-paper|optimality, case A}",
            "equal decisions for all",
        ),
        Claim(
            "`ppo-split`, a rule that knows the records, `icl`, case A",
            MISSING,
            "splitting",
            "{cases|ppo-split|optimality, case A}, {cases|nearest-record|optimality, case A}, "
            "{cases|icl|optimality, case A}",
            "not in the paper",
        ),
        Claim(
            "more noise, a deeper cut: layers per unit of σ (Fig. 7)",
            "deeper",
            "splitting",
            "{choices|noise σ|slope, layers per unit}",
        ),
        Claim(
            "the surrogate: MSE and MAE of single records, on the scale of relative quality",
            "0.00548, 0.050",
            "splitting",
            "{surrogate|records records f|MSE}, {surrogate|records records f|MAE}",
            "the paper does not say on which scale its errors are",
        ),
    ),
)
SPEED = System(
    "speed",
    "Speed",
    "benchmarks.md",
    "Ours against peers, both sides in the same run. Absolute figures depend on the machine.",
)
SYSTEMS = (
    OFFLOADING,
    SCHEDULING_SYSTEM,
    BALANCING_SYSTEM,
    ROUTING_SYSTEM,
    SPLITTING_SYSTEM,
    SPEED,
)
