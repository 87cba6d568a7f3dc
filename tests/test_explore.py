"""The explorable: the page's own code in Chromium against cql.exact, and the page as a document."""

import base64
import html
import io
import json
import re
import shlex
import urllib.request
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import cql
import envs
import train
from cql import config, explorable
from cql.analysis.exact_curve import exact_curve
from cql.collect import generate_offline_episodes
from cql.commands import explore as command
from cql.dataset import OfflineDataset
from cql.errors import ConfigError, RunError
from cql.exact import (
    TabularMDP,
    alpha_infinity_limit,
    cql_fixed_point,
    empirical_mdp,
    evaluate_policies,
    hitting_probability,
    policy_evaluation,
    settled_policy,
    soft_fixed_point,
)
from cql.losses import Objective
from cql.world import World
from tests import browser
from tests.faults import Child

pytestmark = pytest.mark.slow
DRIVER = """
const dataOf = (setting) => {
  const world = makeWorld(setting), behaviour = behaviourPolicy(world, setting.epsilon);
  const data = makeData(world, behaviour, { source: "sampled", ...setting, edits: new Map(setting.edits) });
  return { world, behaviour, data };
};
const plain = (q) => [...q].map((x) => x === -Infinity ? null : x);
function solved(setting) {
  const { world, behaviour, data } = dataOf(setting), results = setting.objectives.map((objective) => {
    const { gamma, tdLoss } = setting, alpha = objective.alpha === null ? Infinity : objective.alpha;
    const found = solve(data, { gamma, tdLoss, ...objective, alpha }), policy = greedyPolicy(found.q);
    const worth = evaluate(world, policy), value = trueValues(world, policy, gamma);
    return { q: plain(found.q), policy: [...policy], worth: [worth.return, worth.hazard, worth.goal],
             values: [...found.values], value: [...value], residual: found.residual };
  });
  return { counts: [...data.counts], rows: data.steps.length, policy: [...behaviour], results };
}"""


def in_browser(expression: str, folder, modules=explorable.MATHS):
    """What the page's own code gives for an expression, as JSON."""
    text = f"""<!doctype html><meta charset="utf-8"><pre id="out"></pre><script>{explorable.script(modules)}
    {DRIVER}
    document.getElementById("out").textContent = JSON.stringify({expression});</script>"""
    (folder / "case.html").write_text(text, encoding="utf-8")
    document = browser.dumped((folder / "case.html").as_uri())
    return json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', document, re.S)[1]))


def opened(folder, fragment="", script="", preload=None) -> str:
    """The document of the page after its scripts, and one more, ran in Chromium."""
    text = explorable.page(preload).replace("</body>", f"<script>{script}</script></body>")
    (folder / "page.html").write_text(text, encoding="utf-8")
    ready = "document.getElementById('told')" if '"told"' in script else "now"
    return browser.dumped((folder / "page.html").as_uri() + fragment, ready)


def words(document: str, name: str) -> str:
    """The text of the element with this id."""
    return text_of(re.search(rf'<(\w+)[^>]* id="{name}"[^>]*>(.*?)</\1>', document, re.S)[2])


def text_of(markup: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", markup))).strip()


def random_case(rng) -> dict:
    """A world, a data set and the objectives to be solved on them."""
    while True:
        rows, columns = rng.integers(1, 9, 2) if rng.random() < 0.97 else (15, 15)
        cells = np.where(rng.random(rows * columns) < rng.choice([0, 0.15, 0.3]), "H", ".")
        if cells.size > 1:
            cells[rng.choice(cells.size, 2, replace=False)] = "S", "G"
        desc = ["".join(row) for row in cells.reshape(rows, columns)]
        try:
            envs.SafetyCriticalGridWorld(desc=desc)
        except ValueError:
            continue
        break
    rewards = {"free": -1.0, "hazard": -100.0, "goal": 50.0}
    if rng.random() < 0.5:
        rewards = dict(zip(rewards, np.round(rng.normal(scale=20, size=3), 1).tolist()))
    objectives = [{"penalty": "logsumexp", "temperature": 1.0, "alpha": alpha}
                  for alpha in (0.0, 1e-4, *10 ** rng.uniform(-4, 5, 3), 1e5, None)]
    penalty = str(rng.choice(["rho", "previous", "softmax-push-down", "logsumexp"]))
    temperature = float(rng.choice([0.5, 2.0])) if penalty == "logsumexp" else 1.0
    objectives += [{"penalty": penalty, "temperature": temperature, "alpha": alpha}
                   for alpha in 10 ** rng.uniform(-4, 4, 2)]
    return {"map": desc, "slip": float(rng.choice([0, 0.05, 0.3, 1.0])), "rewards": rewards,
            "steps": int(rng.integers(1, 81)), "epsilon": float(rng.uniform(0, 1)),
            "episodes": int(rng.integers(1, 60)), "edits": [], "seed": int(rng.integers(2**31)),
            "gamma": float(rng.choice([0.0, 0.5, 0.9, 0.99])),
            "tdLoss": str(rng.choice(["mse", "half_mse"])), "objectives": objectives}


@browser.needed
def test_the_page_and_the_package_give_the_same_numbers(tmp_path, monkeypatch, times):
    """25 random worlds and data sets, or ``--times``, 9 objectives each: the page in Chromium against NumPy."""
    rng = np.random.default_rng(7)
    cases = [random_case(rng) for _ in range(times or 25)]
    found = in_browser(f"{json.dumps(cases)}.map(solved)", tmp_path)
    worst, parted, policies = {"q": 0.0, "values": 0.0, "worth": 0.0, "true value": 0.0}, 0, 0
    for case, theirs in zip(cases, found, strict=True):
        for letter, name in (("S", "free"), (".", "free"), ("H", "hazard"), ("G", "goal")):
            monkeypatch.setitem(envs.gridworld.REWARDS, letter, case["rewards"][name])
        env = gymnasium.make("SafetyCriticalGridWorld-v0", desc=case["map"], slip_probability=case["slip"],
                             max_episode_steps=case["steps"], disable_env_checker=True)
        true, num_states = TabularMDP.from_env(env), env.unwrapped.num_states
        np.testing.assert_array_equal(theirs["policy"], envs.safe_behavior_policy(env, case["epsilon"]).ravel())
        dataset = generate_offline_episodes(env, case["episodes"], case["epsilon"], case["seed"])
        dataset = type("Columns", (), {**vars(dataset), "rewards": np.array(  # the rewards before they were float32
            [case["rewards"]["hazard" if true.hazard[s] else "goal" if true.goal[s] else "free"]
             for s in dataset.next_observations])})
        empirical, counts = empirical_mdp(dataset, num_states, 4, true.hazard, true.goal, true.start, true.terminal)
        np.testing.assert_array_equal(theirs["counts"], counts.ravel())
        assert theirs["rows"] == counts.sum()
        for objective, their in zip(case["objectives"], theirs["results"], strict=True):
            penalty, alpha, tau = (objective[name] for name in ("penalty", "alpha", "temperature"))
            common = empirical, counts, [alpha or 0.0], case["gamma"], case["tdLoss"]
            if alpha is None:
                q = alpha_infinity_limit(empirical, counts, case["gamma"])
            elif (penalty, tau) == ("logsumexp", 1.0):
                q = cql_fixed_point(*common).q[0]
            else:
                q = soft_fixed_point(*common, penalty, tau).q[0]
            seen = counts.any(-1) & ~true.terminal
            ours, mine = np.array(their["q"], dtype=float).reshape(-1, 4)[seen], q[seen]
            np.testing.assert_array_equal(np.isnan(ours), np.isneginf(mine))
            known, size = np.isfinite(mine), max(1.0, np.abs(mine[np.isfinite(mine)]).max())
            worst["q"] = max(worst["q"], np.abs(ours[known] - mine[known]).max() / size)
            worst["values"] = max(worst["values"], np.abs(np.array(their["values"])[seen] - mine.max(-1)).max() / size)
            policy = np.array(their["policy"]).reshape(-1, 4)
            evaluation = evaluate_policies(true, policy, horizon=case["steps"])
            expected = [evaluation.returns, evaluation.hazard_probability, evaluation.goal_probability]
            worst["worth"] = max(worst["worth"], np.abs(np.subtract(their["worth"], expected)).max() / size)
            value = policy_evaluation(true, policy, case["gamma"])[0]
            worst["true value"] = max(worst["true value"], np.abs(np.array(their["value"]) - value).max() / size)
            differ = (policy[seen] != settled_policy(q)[seen]).any(-1)
            policies, parted = policies + 1, parted + differ.sum()
            for row, action in zip(mine[differ], policy[seen][differ].argmax(-1)):
                assert row.max() - row[action] <= 1e-9 * size
    print(f"{policies} solutions, largest relative differences {worst}, greedy actions that differ {parted}")
    assert all(difference <= 1e-9 for difference in worst.values()), worst
    assert parted <= len(cases) / 10


ISLANDS = {"map": envs.MAPS["islands"], "slip": 0.05, "rewards": {"free": -1, "hazard": -100, "goal": 50}, "steps": 80,
           "epsilon": 0.22, "episodes": 500, "seed": 42, "edits": [], "gamma": 0.99, "tdLoss": "mse"}


@pytest.fixture(scope="module")
def islands():
    return generate_offline_episodes(gymnasium.make("SafetyCriticalGridWorld-v0"))


@browser.needed
def test_the_curve_its_limits_and_flips_are_those_of_the_exact_curve(islands, tmp_path):
    job = """((islands) => { const parts = []; const { world, data } = dataOf(islands);
        exactCurve({ id: 1, world, data, hasLimit: true,
                     setting: { gamma: 0.99, tdLoss: "mse", penalty: "logsumexp", temperature: 1, alpha: 1 } },
                   (part) => { parts.push(part); document.getElementById("out").textContent = JSON.stringify(parts); },
                   () => false); return parts; })(""" + json.dumps(ISLANDS) + ")"
    points, flips = in_browser(job, tmp_path)
    world = World.of(islands)
    expected = exact_curve(world, islands, [point["alpha"] for point in points["points"]], config.Config())
    for theirs, row in zip([*points["points"], points["zero"], points["infinity"]], [
            *expected["curve"], expected["references"]["alpha_zero"], expected["references"]["alpha_infinity"]]):
        assert theirs["return"] == pytest.approx(row["return"], rel=1e-9)
        assert theirs["hazard"] == pytest.approx(row["hazard_probability"], rel=1e-9)
    ours, mine = ({(flip["state"], flip["before"], flip["after"]): flip["alpha"] for flip in found}
                  for found in (flips["flips"], expected["flips"]))
    assert ours.keys() == mine.keys() and len(ours) > 50
    assert all(mine[key] == pytest.approx(alpha, rel=0.02) for key, alpha in ours.items())


@browser.needed
def test_the_chain_and_the_bandit_are_the_examples_worked_by_hand(tmp_path):
    """s1: reward 0 logged 90 times, +5 logged 10 times, both end; s0: -1 and on to s1, or 0 and the end."""
    alphas, modules = [0, 1, 2, 2.25, 6, 1000], (*explorable.MATHS, "lessons")
    shared = "{ gamma: 0.99, tdLoss: 'mse', penalty: 'logsumexp', temperature: 1, alpha }"
    q, actions = in_browser(f"""(() => {{ const {{ data }} = dataOf(PRESETS.chain);
        const at = (alpha) => solve(data, {shared});
        return [{alphas}.map((alpha) => [...at(alpha).q.subarray(12, 14)]),
                [1.47, 1.49, 2.24, 2.26].map((alpha) => [...actionsOf(greedyPolicy(at(alpha).q))])]; }})()""",
                            tmp_path, modules)
    good, bad = np.array(q).T  # up: +5; down: 0
    np.testing.assert_allclose(bad, [0, 0.38, 0.485, 0.5, 0.60, 0.72], atol=5e-3)
    np.testing.assert_allclose(good, [5, 1.62, 0.633, 0.5, -0.36, -1.46], atol=5e-3)
    assert [row[2] for row in actions] == [3, 0, 0, 0]  # s0 stops going right at 1.48; up ends with 0
    assert [row[3] for row in actions] == [0, 0, 0, 1]  # s1 flips at 2.25


@browser.needed
def test_backups_passing_and_unrestricted_q_learning(islands, tmp_path):
    found = in_browser("""((islands) => {
        const setting = { gamma: 0.99, tdLoss: "mse", penalty: "rho", temperature: 1, alpha: 3 };
        const { world, data } = dataOf(islands);
        let values = new Float64Array(225);
        for (let n = 0; n < 2500; n++) values = valueOf(backedUp(data, values, setting).q, 225);
        const exact = solve(data, setting), policy = greedyPolicy(exact.q), free = solveUnrestricted(data, 0.99, 25);
        const many = dataOf({ ...islands, source: "infinite" }).data;
        return { backups: [...values], values: [...exact.values], policy: [...policy], free: [...free.q],
                 passing: [...passing(world, policy)], beta: [...many.beta], seen: [...many.seen] };
        })(""" + json.dumps(ISLANDS) + ")", tmp_path)
    np.testing.assert_allclose(found["backups"], found["values"], atol=1e-7)
    world = World.of(islands)
    empirical, counts = world.empirical(islands)
    policy = np.array(found["policy"]).reshape(-1, 4)
    for state in (16, 100, 188, 224, int(np.flatnonzero(world.mdp.hazard)[0])):
        enters = hitting_probability(world.mdp, policy, np.arange(225) == state, horizon=80)[0]
        assert found["passing"][state] == pytest.approx(enters, abs=1e-12)
    q = np.where(counts > 0, 0.0, 25.0)
    for _ in range(4000):
        values = np.where(world.mdp.terminal, 0.0, q.max(-1))
        target = empirical.expected_reward + 0.99 * (empirical.continuing * values[empirical.next_state]).sum(-1)
        q = np.where(counts > 0, target, 25.0)
    seen = counts.any(-1)
    np.testing.assert_allclose(np.array(found["free"]).reshape(-1, 4)[seen], q[seen], atol=1e-9)
    behaviour = envs.safe_behavior_policy(world.environment, 0.22)
    many = np.array(found["seen"]) > 0
    assert many.sum() == 202  # 225 cells without 22 hazards and the goal
    np.testing.assert_allclose(np.array(found["beta"]).reshape(-1, 4)[many], behaviour[many], atol=1e-12)


# --------------------------------------------------------------------------------------------------- what leaves it


@browser.needed
def test_the_saved_data_set_is_that_of_train_py(islands, tmp_path):
    edited = {**ISLANDS, "source": "sampled", "edits": [[0, 3], [1, 0]]}
    made = in_browser(json.dumps([{**ISLANDS, "source": "sampled"}, edited]) + """.map((setting) => {
        const { data } = dataOf(setting), parts = datasetFile({ ...setting, edits: new Map(setting.edits) }, data);
        return btoa(parts.flatMap((part) => [...part]).map((b) => String.fromCharCode(b)).join("")); })""", tmp_path,
                      (*explorable.MATHS, "files"))
    same, other = (OfflineDataset.load(io.BytesIO(base64.b64decode(text))) for text in made)
    for name in ("observations", "actions", "rewards", "next_observations", "terminations", "truncations",
                 "episode_ids", "behavior_probabilities"):
        np.testing.assert_array_equal(getattr(same, name), getattr(islands, name), strict=True)
    assert same.metadata["environment"]["arguments"]["desc"] == list(envs.MAPS["islands"])
    counts = World.of(other).empirical(other)[1]
    assert counts[0, :2].tolist() == [3, 0]
    assert counts[1].tolist() == World.of(islands).empirical(islands)[1][1].tolist()
    assert other.breaks_in_words() is None
    other.save(tmp_path / "cql-data.npz")
    assert train.main(["--dataset", str(tmp_path / "cql-data.npz"), "--steps", "3", "--bc-steps", "3", "--hidden", "8",
                       "--out", str(tmp_path / "run")]) == 0


@browser.needed
def test_command_lines_are_those_of_train_py(tmp_path):
    states = [{**ISLANDS, "source": source, "learner": learner, "alpha": alpha, "temperature": temperature, **more}
              for source in ("sampled", "infinite", "given")
              for more in ({}, {"map": ["S.G"], "slip": 0.2}, {"steps": 50})
              for learner in ("logsumexp", "rho", "previous", "softmax-push-down", "q-logged", "q-all", "bc")
              for alpha, temperature in ((2.5, 2), (0, 1), (None, 1))]
    lines = in_browser(json.dumps(states) + ".map((state) => commandLine("
                       "{ ...state, alpha: state.alpha ?? Infinity, edits: new Map() }))", tmp_path,
                       (*explorable.MATHS, "files"))
    for state, line in zip(states, lines, strict=True):
        if line["command"] is None:
            assert line["notes"] and (state["learner"] == "softmax-push-down" or state["source"] == "infinite")
            continue
        program, script, *arguments = shlex.split(line["command"])
        assert (program, script) == ("python", "train.py")
        parser = train.argparse.ArgumentParser()
        config.add_arguments(parser)
        settings = config.from_arguments(parser.parse_args(arguments))
        assert settings.max_episode_steps == (50 if state["steps"] == 50 and settings.dataset is None else None)
        cloned = state["learner"] == "bc" or (state["learner"], state["alpha"]) == ("logsumexp", None)
        assert (settings.steps == 0) == cloned
        if state["learner"] in ("rho", "previous", "logsumexp") and state["alpha"] == 2.5:
            assert settings.alpha == (2.5,) and settings.penalty == state["learner"]
            assert settings.temperature == (2 if state["learner"] == "logsumexp" else 1)


# ---------------------------------------------------------------------------------------------------------- the page


def test_the_page_in_docs_is_what_the_sources_make_and_loads_nothing():
    text = (Path(__file__).parent.parent / "docs/explore/index.html").read_text(encoding="utf-8")
    assert text == explorable.page(), "make it again: python -m cql explore --out docs/explore/index.html"
    assert not re.search(r"https?://|@import|url\(|<link|<img|\ssrc=|import\(|fetch\(", text)


@browser.needed
def test_the_page_says_what_the_exact_solution_says(tmp_path):
    document = opened(tmp_path, "#alpha=6&cell=16")
    assert "CQL(H), α = 6 21.26 0.0021 0.9979" in words(document, "outcomes")
    assert "value estimate is 7.22 and the true discounted value 12.47: 5.24 too low" in words(document, "estimate")
    assert "the equations hold to" in words(document, "status") and words(document, "command") == "python train.py"
    assert words(document, "cell-head") == "Row 2, column 2: a free cell"
    formula = re.search(r"↓ +([−\d.]+) \+ ([\d.]+) × \(1 − ([\d.]+)/([\d.]+)\) = ([−\d.]+)",
                        re.sub(r"\s|&nbsp;", " ", document))
    y, half, p, beta, q = (float(x.replace("−", "-")) for x in formula.groups())
    assert half == 3 and q == pytest.approx(y + half * (1 - p / beta), abs=0.02)


TYPED = """
function typed(id, text) {  // as the keyboard does: the focus stays in the field
  const field = document.getElementById(id);
  field.focus();
  field.value = text;
  field.dispatchEvent(new Event("change", { bubbles: true }));
}
const set = (field, value, kind = "change") => {
  field.value = value;
  field.dispatchEvent(new Event(kind, { bubbles: true }));
};
const press = (key) => $("map").dispatchEvent(new KeyboardEvent("keydown", { key }));
const later = (act) => requestAnimationFrame(() => setTimeout(act));
later(() => { %s; later(() => { const said = document.createElement("p"); said.id = "told";
  said.textContent = JSON.stringify(%s); document.body.append(said); }); });"""


@browser.needed
def test_a_number_that_is_not_taken_is_refused_in_words_and_the_focus_stays(tmp_path):
    expected = {
        ("alpha-number", "abc"): ["6", "α: give a number from 0 to 100,000, or ∞."],
        ("alpha-number", "-3"): ["6", "α: give a number from 0 to 100,000, or ∞."],
        ("alpha-number", "12,50"): ["12.5", ""],
        ("rows", "50"): ["15", "Rows: give a whole number from 1 to 20."],
        ("gamma", "1"): ["0.99", "Discount γ: give a number from 0 to 0.999."],
        ("hazard", ""): ["-100", "hazard: give a number."],
    }
    told = json.dumps([list(case) for case in expected]) + """.map(([id, text]) => {
        typed(id, text);
        render();
        return [document.activeElement.id, $(id).value, $("refusal").textContent]; })"""
    found = json.loads(words(opened(tmp_path, "", TYPED % ("", told)), "told"))
    assert found == [[name, *shown] for (name, _), shown in expected.items()]


@browser.needed
def test_what_the_page_says_of_a_case(tmp_path):
    """Of an address, or after a change of what it shows."""
    cases = [
        ("lesson=3", "formula", "Q = y + α/2 · (1 − p/β), α/2 = 0.50"),
        ("alpha=nonsense&slip=7&map=S.X/..G&seed=-1&edits=a.b", "outcomes", "CQL(H), α = 6 21.26"),
        ("", "outcomes", "CQL(H), α = ∞ 14.04 0.0560", "set($('alpha'), $('alpha').max, 'input')"),
        ("", "cell-head", "Row 2, column 2: a hazard", "['ArrowRight', 'ArrowDown', 'h'].forEach(press)"),
        ("map=SG&cell=1", "map-error", "The map has no goal.", "press('h')"),
        ("", "data-text", "675 pairs in 201 cells; 1 pairs", "set(document.querySelector('[data-pair]'), 0)"),
        ("learner=bc", "outcomes", "Behaviour Cloning 14.04"),
        ("learner=softmax-push-down&alpha=Infinity", "outcomes", "α = 100000"),
        # 90 of 100 logged actions end with 0, 10 with +5; in the chain ½ (−1 + 0.1 · 5) = −0.25
        ("lesson=2", "outcomes", "End with 0 Goal Behaviour, β of the data 0.50 0.9000 0.1000"),
        ("map=HG%2FS.%2FHH&slip=0&steps=10&rewards=-1%2C0%2C5&edits=8.50,9.0,10.0,11.50,12.10,13.90,14.0,15.0",
         "outcomes", "Behaviour, β of the data −0.25 0.9500 0.0500"),
        ("lesson=2", "legend", "0 end with reward 0"),
        ("cell=32&view=policy", "legend", "× hazard"),
        ("lesson=1", "command-note", "No flag sets the initial Q of 25: the table of train.py starts within ±0.067."),
        ("lesson=6", "legend", "≤ −13.7 ≥ 13.7"),
        ("lesson=6&source=infinite&alpha=0", "legend", "0.00 in every cell ○ start"),
        ("source=infinite&edits=0.7", "cell", "logged ∞ ∞ ∞ ∞ β 0.055"),
        ("lesson=2", "view-text", "CQL(H) pulls blue up and pushes orange down."),
        ("lesson=2&learner=softmax-push-down", "view-text", "Eq. 1 pulls nothing up."),
        ("learner=bc&view=estimate", "legend", "○ start"),  # and no scale
    ]
    acts = [f"[{address!r}, {name!r}, () => {{ {''.join(act)} }}]" for address, name, _, *act in cases]
    told = f"[{', '.join(acts)}]" + """.map(([address, id, act]) => {
        history.replaceState(null, "", "#" + address);
        readAddress();
        render();
        act();
        render();
        return btoa(unescape(encodeURIComponent($(id).innerHTML))); })"""
    found = [text_of(base64.b64decode(text).decode())
             for text in json.loads(words(opened(tmp_path, "", TYPED % ("", told)), "told"))]
    for said, (address, _, expected, *_) in zip(found, cases, strict=True):
        assert expected in said and "−0.00 " not in said, (address, said)
    assert found[-1].startswith("○ start")


@browser.needed
def test_the_view_of_the_push_has_the_sign_and_the_colours_of_the_tutorial(tmp_path):
    """At α = 6 the bandit has p = (0.721, 0.279), β = (0.9, 0.1): left is pulled up and blue, right orange."""
    colours = """(() => { const at = (x, y) => { const ratio = window.devicePixelRatio || 1;
        return [...$("map").getContext("2d").getImageData(x * ratio, y * ratio, 1, 1).data].slice(0, 3); };
        const side = 96, left = Math.floor(($("map").clientWidth - 3 * side) / 2) + side;
        return [at(left + 5, 49), at(left + 91, 49)]; })()"""
    left, right = json.loads(words(opened(tmp_path, "#lesson=2&cell=0", TYPED % ("", colours)), "told"))
    assert left[2] > left[0] + 20 and right[0] > right[2] + 20


@browser.needed
def test_a_preset_ends_the_lesson_and_the_cursor_stands_on_its_start(tmp_path):
    script = TYPED % ("set($('preset'), 'chain')",
                      "[state.lesson, document.querySelectorAll('#lessons [aria-pressed=true]').length]")
    document = opened(tmp_path, "#lesson=6", script)
    assert json.loads(words(document, "told")) == [0, 0]
    assert words(document, "cell-head") == "Row 2, column 1: the start"
    assert words(document, "lesson-body") == "Each sets the controls and asks a question."
    assert "6 Sampling" in words(document, "lessons")


@browser.needed
def test_only_sampled_data_have_episodes_and_a_seed(tmp_path):
    document = opened(tmp_path, "#source=infinite")
    hidden = {name: " hidden" in re.search(rf'<[^>]* id="{name}"[^>]*>', document)[0]
              for name in ("episodes-label", "seed-fields", "epsilon-label")}
    assert hidden == {"episodes-label": True, "seed-fields": True, "epsilon-label": False}
    assert "<input" not in re.search(r'<table id="cell">.*?</table>', document, re.S)[0]


@browser.needed
def test_the_tabs_wrap_alike_whatever_is_chosen(tmp_path):
    """A tab is as wide when it is chosen as when it is not."""
    widths = """Object.keys(VIEWS).filter((view) => view !== "trained").map((view) => { state.view = view; render();
        return [...$("views").children].map((tab) => tab.getBoundingClientRect().width).join(); })"""
    found = json.loads(words(opened(tmp_path, "", TYPED % ("document.body.style.width = '390px'", widths)), "told"))
    assert len(found) == 6 and len(set(found)) == 1


# ----------------------------------------------------------------------------------------------------------- preloaded


@browser.needed
def test_a_fit_is_preloaded_with_its_data_and_trained_q(tmp_path):
    environment = gymnasium.make("envs:SafetyCriticalGridWorld-v0", map_name="blocks", slip_probability=0.1)
    data = cql.generate_offline_episodes(environment, n_episodes=30, epsilon=0.3, seed=5)
    fit = cql.fit(data, alpha=2.0, steps=30, hidden=(8,))
    shown = cql.explore(fit=fit)
    assert shown._repr_html_().startswith('<iframe srcdoc="&lt;!doctype html&gt;')
    shown.save(tmp_path / "fit.html")
    preload = explorable.preload_of_fit(fit)
    assert (tmp_path / "fit.html").read_text(encoding="utf-8") == explorable.page(preload)
    np.testing.assert_array_equal(preload["trained"][0]["q"], fit.q[0])
    exact = cql.solve(data, 2.0).value[0][0]
    document = opened(tmp_path, "#member=1", preload=preload)
    assert f"value estimate is {exact:.2f}".replace("-", "−") in words(document, "estimate")
    cells = words(document, "cell")
    assert "trained Q " + " ".join(f"{q:.2f}".replace("-", "−") for q in fit.q[0, 0]) in cells
    assert words(document, "command") == "python train.py --dataset cql-data.npz --alpha 2"
    assert preload["map"] == list(envs.MAPS["blocks"]) and (preload["episodes"], preload["seed"]) == (30, 5)


def test_a_run_is_preloaded_and_what_cannot_be_shown_is_refused(deployable, tmp_path, islands, capsys):
    assert command.main([str(deployable), "--out", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    preload = json.loads(text.split('id="preload">')[1].split("</script>")[0])
    assert [member["name"] for member in preload["trained"]] == ["cql-a1-s42-d42", "cql-a6-s42-d42"]
    assert preload["map"] == ["S...", ".H..", "...G"] and sum(row[-1] for row in preload["logged"]) > 80
    lake = OfflineDataset.from_arrays([0], [0], [0.0], [4], [False], metadata={
        "environment": {"id": "FrozenLake-v1", "arguments": {}, "max_episode_steps": 100}, "num_states": 16,
        "num_actions": 4})
    with pytest.raises(RunError, match="SafetyCriticalGridWorld alone"):
        cql.explore(lake)
    with pytest.raises(RunError, match="gamma up to"):
        explorable.preload_of(islands, Objective(gamma=1.0))
    with pytest.raises(ConfigError, match="one of them"):
        cql.explore(islands, run=deployable)
    missing = str(tmp_path / "missing" / "page.html")
    capsys.readouterr()
    for arguments, said in (([str(tmp_path)], f"{tmp_path} is no run folder: it has no config.json."),
                            (["--port", "70000"], "a port is a number from 0 to 65535, not 70000."),
                            (["--out", str(tmp_path / "new.html"), "--port", "99999"],
                             "a port is a number from 0 to 65535, not 99999."),
                            (["--out", missing], f"{missing} cannot be written (No such file or directory)."),
                            (["--out", ""], "'' cannot be written (it names no file).")):
        assert command.main(arguments) == 2
        assert capsys.readouterr() == ("", f"error: {said}\n")
    assert not (tmp_path / "new.html").exists()


@pytest.mark.parametrize("settings, said", [
    ({"td_loss": "huber"}, "solves for mse, half_mse, not huber"),
    ({"penalty": "mu", "target_policy": "behavior"}, "solves for logsumexp, rho, previous, not mu"),
    ({"penalty": "push-down", "target_policy": "behavior"}, "not push-down"),
    ({"penalty_threshold": 1.5}, "for a given alpha, not for one learned"),
])
def test_an_objective_that_the_page_lacks_is_refused(settings, said, islands):
    fit = cql.fit(islands, steps=1, hidden=(0,), **settings)
    with pytest.raises(RunError, match=said):
        cql.explore(fit=fit)


def test_what_leaves_the_exact_solution_as_it_is_is_shown(islands):
    """docs/math.md: so do double Q and --supported. A fit without CQL says so in its name."""
    preload = explorable.preload_of_fit(cql.fit(islands, steps=1, hidden=(0,), double_q=True))
    assert (preload["name"], len(preload["trained"])) == ("the fit’s data", 1)
    preload = explorable.preload_of_fit(cql.fit(islands, steps=1, hidden=(0,), supported=True))
    assert (preload["name"], preload["trained"]) == ("the fit’s data (trained Q not shown: not finite)", [])
    preload = explorable.preload_of_fit(cql.fit(islands, algorithm="bc", steps=1, hidden=(0,)))
    assert (preload["name"], preload["trained"]) == ("the fit’s data (no CQL member was trained)", [])


@pytest.mark.parametrize("arguments, said", [
    ({"dataset": "r1"}, "path as run, not dataset of type str (a run: run='r1')."),
    ({"fit": 3}, "not fit of type int."),
    ({"run": 3}, "not run of type int.")])
def test_what_is_of_no_kind_that_explore_takes_gets_one_sentence(arguments, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        cql.explore(**arguments)


@pytest.mark.parametrize("facts", [
    {"epsilon": "<img src=x onerror=alert(1)>", "episodes": {"a": 1}, "seed": "7"},
    {"epsilon": float("nan"), "episodes": 0, "seed": -1}, {"epsilon": 1.5, "episodes": True, "seed": 0.5},
    {"epsilon": None, "episodes": 10**400, "seed": [1]}])
def test_metadata_that_are_no_numbers_in_range_do_not_reach_the_page(facts, islands):
    strange = replace(islands, metadata={**islands.metadata, **facts})
    assert not explorable.preload_of(strange).keys() & facts.keys()
    assert explorable.preload_of(islands).items() >= {"epsilon": 0.22, "episodes": 500, "seed": 42}.items()


@browser.needed
def test_names_are_text_on_the_page(islands, tmp_path):
    name = '"><b id="inserted">'
    preload = explorable.preload_of(islands, trained=[{"name": name, "alpha": 6.0, "q": np.zeros((225, 4)).tolist()}])
    shown = opened(tmp_path, "#member=1&cell=16", preload=preload).split("<script")[0]
    assert "trained Q" in words(shown, "cell") and '<b id="inserted">' not in shown


def test_the_command_serves_the_page_on_this_machine(tmp_path):
    child = Child(command.main, ["--port", "0"], tmp_path)
    try:
        address = re.search(r"http://127.0.0.1:\d+/", child.first_line())[0]
        with urllib.request.urlopen(address) as answer:
            assert answer.read().decode() == explorable.page()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address + "etc/passwd")
    finally:
        child.process.terminate()
        child.wait()
