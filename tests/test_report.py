"""The report: numbers of the maps against exact computations, the page as a document, and the page in a browser."""

import argparse
import dataclasses
import hashlib
import json
import re
import tomllib
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import evaluate
import train
from cql import config as settings
from cql.analysis import report, selection, statistics
from cql.analysis.report import alpha_maps, page, slider
from cql.analysis.report import figures as report_figures
from cql.analysis.report.data import ReportData
from cql.analysis.report.slider import slider_numbers
from cql.analysis.results import Results
from cql.collect import make_environment
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.exact import TabularMDP, curve, evaluate_policies, hitting_probability
from cql.members import Member
from cql.policy import Policy
from cql.run_folder import RunFolder
from cql.world import World, exact_solution
from envs import ENV_ID
from tests import browser
from tests.mdps import random_policies, random_table

pytestmark = pytest.mark.slow
TINY = ["--steps", "60", "--bc-steps", "40", "--log-every", "20", "--hidden", "8", "--device", "cpu"]
HOSTILE = "a<b>&amp;{{style}}{%x%}<script>'.txt"  # a file name that a page must not take for markup or for a template
PICTURES = ["report_alpha", "report_departure", "report_paired", "report_policies"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, no_pictures):
    """Two alphas, two seeds, two draws, on a small map that is not square, with its report."""
    folder = tmp_path_factory.mktemp("report")
    (folder / HOSTILE).write_text("S..H.\n.H...\n....G\n")
    assert train.main([*TINY, "--map", str(folder / HOSTILE), "--alpha", "0", "5", "--num-seeds", "2",
                       "--num-datasets", "2", "--episodes", "20", "--out", str(folder / "run")]) == 0
    no_pictures[0](RunFolder.open(folder / "run"))
    before = RunFolder.open(folder / "run").files()
    assert evaluate.main([str(folder / "run"), "--episodes", "3", "--report"]) == 0
    added = set(RunFolder.open(folder / "run").files()) - set(before)
    assert added == {"report.html", "statistics.json", "selection.json", *(f"figures/{name}.png" for name in PICTURES)}
    return RunFolder.open(folder / "run")


@pytest.fixture(scope="module")
def data(run):
    return ReportData.of(run, run.read_json("statistics.json"), run.read_json("selection.json"))


@pytest.fixture(scope="module")
def text(run):
    return (run.path / "report.html").read_text(encoding="utf-8")


def bare_page(path, *options: str) -> str:
    """The page of a new run of 5 episodes on a map of 36 cells, without pictures."""
    assert train.main([*TINY, "--map", "random:6:1", *options, "--episodes", "5", "--out", str(path)]) == 0
    run = RunFolder.open(path)
    population = Results.of(run)
    chosen = selection.referee(run) if population.alphas else None
    return report.render(ReportData.of(run, statistics.summary(population), chosen), {})


def numbers_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="maps-data">(.*?)</script>', text, re.S)[1])


def test_passing_through_a_corridor_by_hand():
    """Three cells; action 0 goes right with probability 1/2, else stays; cell 2 ends the episode."""
    P = {0: {0: [(0.5, 1, 0.0, False), (0.5, 0, 0.0, False)]}, 1: {0: [(0.5, 2, 0.0, True), (0.5, 1, 0.0, False)]},
         2: {0: [(1.0, 2, 0.0, True)]}}
    mdp = TabularMDP.from_P(P, start=0)
    found = alpha_maps.passing_probability(mdp, np.ones((1, 3, 1)), horizon=3)
    # cell 1 within 3 steps: 1 - 1/8; cell 2: two successes in three: 1/2
    np.testing.assert_allclose(found, [[1.0, 7 / 8, 1 / 2]], atol=1e-15)


def test_passing_probability_is_the_hitting_probability_of_every_state():
    """Random tables whose outcomes may end in any state, states revisited; policies that are no single action."""
    rng = np.random.default_rng(3)
    mdp = dataclasses.replace(TabularMDP.from_P(random_table(rng)), start=np.array([0.5, 0, 0.5, 0, 0, 0, 0, 0]))
    policies = random_policies(rng, 3, 8, 3)
    found = alpha_maps.passing_probability(mdp, policies, 6, floor=0.0)
    for state in range(8):
        mask = np.arange(8) == state
        later = hitting_probability(mdp, policies, mask, 6)  # [N, S]: entered after the start
        expected = mdp.start[state] + (mdp.start * later)[:, ~mask].sum(-1)
        np.testing.assert_allclose(found[:, state], expected, atol=1e-12)


def test_rare_states_keep_a_number_that_is_as_small(data):
    mdp, policies = data.run_data.world.known().mdp, next(iter(data.exact.values())).policies[:4]
    exact, found = (alpha_maps.passing_probability(mdp, policies, 80, floor) for floor in (0.0, 0.01))
    left = ~np.isclose(exact, found, atol=1e-14)
    assert left.any() and (found >= exact - 1e-14).all() and (found[left] <= 0.01).all()


def test_the_exact_side_is_the_exact_curve(data):
    run_data, mdp = data.run_data, data.run_data.world.known().mdp
    for seed, exact in data.exact.items():
        empirical, counts = run_data.world.empirical(run_data.datasets[seed])
        solve = partial(exact_solution, run_data.config.objective, empirical, counts)
        found = curve.alpha_curve(mdp, counts, solve, [5.0], run_data.config.gamma, 80)
        n = exact.at(5.0)
        assert exact.metrics["return"][n] == pytest.approx(found.metrics["return"][0], abs=1e-9)
        error = found.value_estimate[0] - found.metrics["discounted_value"][0]
        assert exact.metrics["value_error"][n] == pytest.approx(error)
        limit = curve.references(mdp, empirical, counts, solve, run_data.config.gamma, 80)["alpha_zero"]
        assert exact.at(0.0) == 0 and exact.metrics["return"][0] == pytest.approx(limit["return"], abs=1e-9)
        assert exact.metrics["value_estimate"][0] == pytest.approx(limit["value_estimate"], abs=1e-4)


def test_penalty_of_the_exact_solution_by_hand():
    """Two logged actions with Q 1 and 0, seen 3 and 1 times: log(e + 1) - 3/4; a third action never logged."""
    q = np.array([[[1.0, 0.0, -np.inf], [0.0, 0.0, 0.0]]])
    counts = np.array([[3, 1, 0], [0, 0, 0]])
    found = alpha_maps.mean_penalty(q, counts, counts.any(-1))
    np.testing.assert_allclose(found, [np.log(np.e + 1) - 0.75], atol=1e-15)


def test_unsupported_share_by_hand():
    """Two steps, then the end: the first action logged, of the second half the probability is on an unlogged one."""
    P = {0: {0: [(1.0, 1, 0.0, False)], 1: [(1.0, 1, 0.0, False)]}, 1: {a: [(1.0, 2, 0.0, True)] for a in (0, 1)},
         2: {a: [(1.0, 2, 0.0, True)] for a in (0, 1)}}
    policy = np.array([[[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]]])
    found = alpha_maps.ood_share(TabularMDP.from_P(P, start=0), policy, np.array([[4, 0], [4, 0], [0, 0]]), 10)
    np.testing.assert_allclose(found, [0.25], atol=1e-15)


def test_the_grid_holds_what_was_trained_and_no_twin_of_it():
    found = alpha_maps.grid([0.0, 0.1, 0.25], 225)
    assert {0.0, 0.1, 0.25} <= set(found) and (np.diff(found) > 0).all()
    assert len(found) == 2 + curve.POINTS  # 0.1 lies on the grid itself
    np.testing.assert_array_equal(alpha_maps.grid([0.0, 6.0], 10**6), [0.0, 6.0])  # a map too large for more


def test_trained_maps_are_those_of_the_policies_and_the_evaluation(run, data, text):
    numbers, mdp = numbers_of(text), data.run_data.world.known().mdp
    assert [draw["seed"] for draw in numbers["draws"]] == [42, 43] and numbers["alphas"] == [0, 5]
    entries = {(e["alpha"], e["seed"], e["data_seed"]): e for e in run.read_json("evaluation.json")["members"]}
    for draw in numbers["draws"]:
        side = draw["trained"]
        for n, (alpha, seed) in enumerate(zip(side["alphas"], side["seeds"], strict=True)):
            policy = Policy.load(run.policy_path(Member("cql", float(alpha), seed, draw["seed"]).name))
            actions, entry = policy.act(np.arange(15)), entries[alpha, seed, draw["seed"]]
            assert [int(letter) for letter in side["actions"][n]] == actions.tolist()
            assert side["return"][n] == float(f"{entry['exact']['return']:.4g}")
            assert side["hazard"][n] == float(f"{entry['exact']['hazard_probability']:.4g}")
            assert side["trueAtStart"][n] == float(f"{entry['exact']['discounted_value']:.4g}")
            goal = evaluate_policies(mdp, (actions[:, None] == np.arange(4)).astype(float), horizon=80).goal_probability
            assert side["passing"][n][14] * numbers["step"] == pytest.approx(goal, abs=0.5 * numbers["step"] + 1e-12)


def test_support_names_the_logged_actions(data, text):
    for draw in numbers_of(text)["draws"]:
        counts = data.exact[draw["seed"]].counts
        assert draw["logged"] == ["".join(str(a) for a in range(4) if row[a]) for row in counts]
        assert any(draw["logged"]) and "" in draw["logged"]
        exact = draw["exact"]
        for actions, values in zip(exact["actions"], exact["estimate"]):
            for s, logged in enumerate(draw["logged"]):
                if logged == "" or data.run_data.world.mdp.terminal[s]:
                    assert values[s] is None
                else:
                    assert actions[s] in logged and values[s] is not None  # the exact side stays within the data


def test_no_more_draws_than_the_budget_allows(data, monkeypatch):
    monkeypatch.setattr(alpha_maps, "BUDGET", 1)
    assert [draw["seed"] for draw in slider_numbers(data)["draws"]] == [42]


def test_rounding_keeps_four_digits_and_no_nan():
    assert slider.rounded([1234.56, -0.00012344, 21.0, np.nan, np.inf]) == [1235, -0.0001234, 21, None, None]


def test_the_exact_curve_is_drawn_as_far_as_it_is_solved(data):
    """Two alphas were trained, 0 and 5; the curve goes from 0.01 to 1,000, and the axis holds it."""
    panel = report_figures.alpha_curves(data).axes[0]
    curves = [line for line in panel.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 9]
    x, y = data.exact_mean("return")
    assert len(curves) == 1 and (curves[0].get_xdata()[0], curves[0].get_xdata()[-1]) == (0.01, 1000.0)
    np.testing.assert_allclose(curves[0].get_ydata(), y[x > 0])
    low, high = panel.get_xlim()
    assert low < 0.01 and high > 1000


def test_the_curves_show_the_statistics_and_the_exact_means(data):
    figure = report_figures.alpha_curves(data)
    panel = next(ax for ax in figure.axes if ax.get_title(loc="left") == "Conservative penalty (nats)")
    exact = np.mean([exact.metrics["penalty"] for exact in data.exact.values()], axis=0)
    alphas = next(iter(data.exact.values())).alphas
    line = next(line for line in panel.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 9)
    np.testing.assert_allclose(line.get_ydata(), exact[alphas > 0])
    mean = data.mean(("cql", 5.0), "penalty")[0]
    low, high = panel.get_ylim()
    drawn = [line.get_ydata()[0] for line in panel.lines if line.get_marker() in "ov^" and line.get_xdata()[0] == 5.0]
    assert drawn == [pytest.approx(mean)] if low <= mean <= high else [low < drawn[0] < high]


def test_zero_has_a_place_left_of_all_others():
    axis = report_figures.AlphaAxis([0.0, 0.01, 200.0])
    zero, low, high = axis.positions([0.0, 0.01, 200.0])
    assert 0 < zero < low / 1.5 and (low, high) == (0.01, 200.0)


def test_colours_leave_dark_text_readable():
    """WCAG 2: contrast of black on every colour of the maps above 5 : 1, and of the page's text above 4.5 : 1."""
    def luminance(colour):
        c = np.array([int(colour[k:k + 2], 16) for k in (1, 3, 5)]) / 255
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    for name in {colours for colours, _ in slider.COLOURS.values()}:
        assert min((luminance(colour) + 0.05) / 0.05 for colour in slider.palette(name)) > 5
    css = (Path(report.__file__).parent / "page.css").read_text()
    for name in ("ink", "quiet", "accent", "warn"):
        colour = re.search(rf"--{name}: (#\w{{6}})", css)[1]
        assert 1.05 / (luminance(colour) + 0.05) > 4.5, name


class Page(HTMLParser):
    """Ids, links and the stack of open elements."""

    VOID = {"meta", "img", "input", "br"}

    def __init__(self, text):
        super().__init__()
        self.ids, self.addresses, self.targets, self.tags, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        names = ("for", "aria-labelledby", "aria-describedby")
        self.targets += [attributes[name] for name in names if name in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_sound_document_that_needs_nothing_else(text):
    page = Page(text)
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    assert set(page.targets) <= set(page.ids)
    for address in page.addresses:
        assert address.startswith("data:image/png;base64,") or address[0] == "#" and address[1:] in page.ids
    assert page.tags.count("img") == len(PICTURES) + 1 and page.tags.count("h1") == 1
    assert "link" not in page.tags and "@import" not in text and "url(" not in text


def test_names_from_files_are_text(run, text):
    assert HOSTILE not in text and "a&lt;b&gt;&amp;amp;{{style}}{%x%}&lt;script&gt;&#39;.txt" in text
    assert json.loads((run.path / "config.json").read_text())["map"].endswith(HOSTILE)


def test_embedded_json_cannot_end_its_element(data, monkeypatch):
    numbers = {**slider_numbers(data), "a": "</script><script>alert(1)</script><!-- & "}
    monkeypatch.setattr(page, "slider_numbers", lambda data: numbers)
    text = report.render(data, {})
    assert "alert(1)</script>" not in text and Page(text).open == []
    assert numbers_of(text) == json.loads(json.dumps(numbers))


def test_the_same_files_give_the_same_page(run, data, text):
    assert report.render(data, report_figures.draw_report(data)) == text
    assert run.verify() == []  # the manifest knows the page and its pictures


def test_the_same_numbers_give_the_same_pictures(data, rendered, coarse):
    first, second = ({name: path.read_bytes() for name, path in report_figures.draw_report(data).items()}
                     for _ in range(2))
    assert sorted(first) == PICTURES and first == second and all(len(png) > 10_000 for png in first.values())


def test_statistics_and_selection_stand_beside_it(run):
    assert run.read_json("statistics.json") == json.loads(json.dumps(statistics.summary(Results.of(run))))
    assert len(run.read_json("selection.json")["estimates"]) == 8


def test_the_page_denies_nothing_without_an_interval(text):
    """Two data sets: what is said of BC is not known, no lead is a tie, and no rule is the best."""
    few = "an interval takes 6 data sets, and the run has 2"
    found = re.search(r"What this run allows to be said.*?</table>", text, re.S)[0]
    assert found.count(f'<td class="words">not known</td><td class="words">{few}</td>') == 2
    assert "at no α" not in found and "none" not in found and "a tie" not in found
    assert found.count("(no interval: it may be chance)") == 2
    assert f"No mean has an interval here: {few}." in text and f"no bars, since {few}" in text
    assert f"On other data another rule may lose less: {few}." in text


def test_rules_without_a_score_are_folded_below_the_table(run, text):
    folded = re.search(r"<details>\n<summary>(\d+) rules? without a score here</summary>(.*?)</details>", text, re.S)
    table = re.search(r"The referee’s table.*?</table>", text, re.S)[0]
    without = [e["label"] for e in run.read_json("selection.json")["rules"] if not e["available"]]
    assert without and int(folded[1]) == len(without)
    for entry in run.read_json("selection.json")["rules"]:
        assert (f'<th scope="row">{entry["label"]}<small>' in table) == (entry["label"] not in without)
        assert (entry["label"] in without) == (entry["label"] in folded[2])


def test_the_training_curves_have_a_word_on_the_td_loss(text):
    assert "That the TD loss rises while CQL learns is no fault" in text


def test_the_page_names_what_reproduces_it(run, data, text):
    first, second = page.commands(data)
    assert second == "python evaluate.py RUN --episodes 3 --report"
    assert " --alpha 0 5 " in first and " --num-seeds 2 " in first and "--gamma" not in first
    for name in ("config.json", "datasets/43.npz", "evaluation.json"):
        assert hashlib.sha256((run.path / name).read_bytes()).hexdigest() in text
    lines = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  policies/{path.name}\n"
                    for path in sorted((run.path / "policies").iterdir()))
    assert hashlib.sha256(lines.encode()).hexdigest() in text


@pytest.mark.parametrize("changed", [
    {}, {"alpha": (0.01, 3.0, 1e-5), "hidden": (), "gamma": 1.0, "double_q": True},
    {"batch_size": 64, "max_episode_steps": 9, "penalty_threshold": 1.25, "hidden": (32,), "lr": 1e-4}])
def test_a_command_line_gives_its_config_back(changed):
    config, parser = Config(**changed), argparse.ArgumentParser()
    settings.add_arguments(parser)
    assert settings.from_arguments(parser.parse_args(settings.command_line(config))) == config


def test_an_installed_package_holds_the_page():
    folder = Path(report.__file__).parent
    setup = tomllib.loads((folder.parents[2] / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = {path.name for pattern in setup["package-data"]["cql.analysis.report"] for path in folder.glob(pattern)}
    assert shipped == {path.name for path in folder.iterdir() if path.suffix in (".html", ".css", ".js")}


# ------------------------------------------------------------------------------------ runs of which less is known


def test_data_without_an_environment_give_a_page_of_what_is_known(tmp_path):
    random = np.random.default_rng(0)
    states, following = random.integers(0, 6, (2, 60))
    np.savez(tmp_path / "data.npz", observations=states, next_observations=following, actions=random.integers(0, 3, 60),
             rewards=random.normal(size=60), terminations=random.random(60) < 0.1)
    assert train.main([*TINY, "--dataset", str(tmp_path / "data.npz"), "--alpha", "1", "6",
                       "--out", str(tmp_path / "run")]) == 0
    assert evaluate.main([str(tmp_path / "run"), "--report"]) == 0
    text = (tmp_path / "run" / "report.html").read_text()
    assert Page(text).open == [] and "Is it better than what was logged?" in text
    assert "no exact solution" not in text and "There are no maps" not in text  # nothing that is not there
    assert "no rule can be judged" in text and "Only here can its choice be compared" not in text
    assert 'id="maps-data"' not in text


def test_bc_alone_has_a_page(tmp_path):
    text = bare_page(tmp_path / "run", "--steps", "0", "--map", "blocks")
    assert Page(text).open == [] and "the run has no CQL members" in text and 'id="choice"' not in text


def test_a_loss_without_one_solution_leaves_the_trained_side(tmp_path):
    text = bare_page(tmp_path / "run", "--td-loss", "huber", "--bc-steps", "0")
    draw = numbers_of(text)["draws"][0]
    assert draw["exact"] is None and len(draw["trained"]["actions"]) == 1 and "need not be unique" in text


def test_a_single_alpha_is_the_best_of_nothing(tmp_path):
    text = " ".join(bare_page(tmp_path / "run", "--alpha", "6").split())
    assert "There is nothing to choose: the run has a single alpha." in text
    assert "with its penalty’s weight α = 6, and 1 agent" in text
    assert "Offline rule" not in text and "Highest mean" not in text and "The referee’s table" not in text


def test_the_audit_stands_on_the_page_that_asks_for_it(tmp_path):
    """The parts at the start first, as in audit.json; without --audit the page has none, even where audit.json is."""
    path = tmp_path / "run"
    assert train.main([*TINY, "--map", "random:6:1", "--episodes", "30", "--alpha", "1", "9", "--out", str(path)]) == 0
    assert evaluate.main([str(path), "--episodes", "2", "--audit", "--report"]) == 0
    text, audit = (path / "report.html").read_text(), RunFolder.open(path).read_json("audit.json")
    start, everywhere = (re.search(rf"<caption>{words}.*?</table>", text, re.S)
                         for words in ("At the start", "Everywhere"))
    assert Page(text).open == [] and start.end() < everywhere.start() and text.count("data:image/png") == 4 + 2
    for entry in (entry for entry in audit["members"] if entry["algorithm"] == "cql"):
        row = re.search(rf'<th scope="row">{entry["alpha"]:g}</th>.*', start[0])[0]
        cells = [float(cell.replace("−", "-")) for cell in re.findall("<td>([^<–]*)</td>", row)]
        values, parts = entry["start"], list((entry["start"]["decomposition"] or {}).values())
        error = values["value_estimate"] - values["true_value"]
        assert cells == pytest.approx([1, *(values[name] for name in (
            "value_estimate", "oracle_value", "true_value", "optimal_value")), error, *parts], abs=0.006)
        assert not parts or sum(parts) == pytest.approx(error)
        row = re.search(rf'<th scope="row">{entry["alpha"]:g}</th><td>([^<]*)', everywhere[0])[1]
        assert float(row.replace("−", "-")) == pytest.approx(entry["decomposition"]["total"]["mean"], abs=0.006)
    assert "--audit --report" in text and 'id="audit"' in text
    assert evaluate.main([str(path), "--episodes", "2", "--report"]) == 0
    text = (path / "report.html").read_text()
    assert (path / "audit.json").exists() and 'id="audit"' not in text and "RUN --episodes 2 --report" in text
    assert text.count("data:image/png") == 4


def test_learned_alphas_are_not_held_against_the_curve_at_their_starts(tmp_path):
    text = bare_page(tmp_path / "run", "--penalty-threshold", "1.2", "--bc-steps", "0")
    assert numbers_of(text)["draws"][0]["exact"] is None and "members learned alpha" in text


# ------------------------------------------------------------------------------------------------------ in a browser


def shown(document: str, side: str) -> tuple[list[str], list[str], str]:
    """(action by cell, the numbers in words, the title) of one side."""
    grid = re.search(rf'<svg id="{side}-map".*?</svg>', document, re.S)[0]
    row = re.search(rf'<tr id="{side}-numbers">(.*?)</tr>', document, re.S)[1]
    return (re.findall(r'data-action="(\d*)"', grid), re.findall(r"<td>(.*?)</td>", row),
            re.search(rf'<figcaption id="{side}-title">(.*?)</figcaption>', document)[1])


def four_digits(value: float) -> str:
    return f"{float(f'{value:.4g}'):g}".replace("-", "−")


@browser.needed
@pytest.mark.parametrize("how", ["address", "slider"])
def test_the_slider_changes_arrows_and_numbers_to_those_of_the_evaluation(run, data, text, tmp_path, how):
    page, fragment, (draw, seed) = tmp_path / "page.html", "", (42, 42)
    if how == "address":
        (draw, seed), fragment = (43, 43), "#alpha=5&draw=43&seed=43&quantity=passing"
        page.write_text(text, encoding="utf-8")
    else:  # to 0, and then back to 5 as a hand would
        index = [draw["exact"]["alphas"] for draw in numbers_of(text)["draws"]][0].index(5)
        script = f"""<script>for (const position of [0, {index}]) {{
            const slider = document.getElementById("alpha");
            slider.value = position;
            slider.dispatchEvent(new Event("input", {{bubbles: true}}));
        }}</script></body>"""
        page.write_text(text.replace("</body>", script), encoding="utf-8")
    document, start = (browser.dumped(page.as_uri() + part) if part is not None else None
                       for part in (fragment, "#alpha=0" if how == "address" else None))
    entry = next(e for e in run.read_json("evaluation.json")["members"]
                 if (e["alpha"], e["seed"], e["data_seed"]) == (5.0, seed, draw))
    policy = Policy.load(run.policy_path(Member("cql", 5.0, seed, draw).name))
    terminal, exact = data.run_data.world.mdp.terminal, data.exact[draw]
    actions, words, title = shown(document, "trained")
    assert title.startswith("Trained network, α = 5") and "nearest" not in title
    assert actions == ["" if ended else str(a) for a, ended in zip(policy.act(np.arange(15)), terminal)]
    assert words[:2] == [four_digits(entry["exact"][name]) for name in ("return", "hazard_probability")]
    actions, words, title = shown(document, "exact")
    n = exact.at(5.0)
    assert title == "Exact solution, α = 5"
    assert actions == ["" if ended or not seen else str(a) for a, ended, seen in zip(
        exact.policies[n].argmax(-1), terminal, exact.counts.any(-1))]
    assert words[0] == four_digits(exact.metrics["return"][n])
    if start is not None:
        assert shown(start, "trained")[1] != shown(document, "trained")[1] and "→ 0" in shown(start, "exact")[2]


@pytest.mark.parametrize("arguments, words", [
    ({"map_name": "blocks", "slip_probability": 0.3}, "map blocks, slip 0.3"),
    ({"desc": ["S.H", "..G"], "slip_probability": 0.0}, "map of 2 × 3 cells, slip 0")])
def test_given_data_name_their_own_environment(arguments, words):
    """The settings of the run keep their defaults, map islands and slip 0.05, and say nothing of given data."""
    world = World.around(make_environment({"id": ENV_ID, "arguments": arguments, "max_episode_steps": 9}))
    run_data = SimpleNamespace(world=world, config=Config(dataset="d.npz"))
    assert page.environment(SimpleNamespace(run_data=run_data)) == f"{ENV_ID}, {words}"


def test_a_single_transition_without_bc_is_not_described_as_several_with_it(tmp_path):
    spec = {"environment": {"id": "FrozenLake-v1", "arguments": {}, "max_episode_steps": 100}, "num_states": 16,
            "num_actions": 4}
    OfflineDataset.from_arrays([0], [0], [0.0], [4], [False], [True], metadata=spec).save(tmp_path / "d.npz")
    assert train.main([*TINY, "--dataset", str(tmp_path / "d.npz"), "--bc-steps", "0", "--out",
                       str(tmp_path / "run")]) == 0
    run = RunFolder.open(tmp_path / "run")
    population = Results.of(run)
    text = report.render(ReportData.of(run, statistics.summary(population), selection.referee(run, 2)), {})
    assert "The data were given: 1 transition." in text and "The probabilities P" not in text
    assert "The environment is FrozenLake-v1, 100 steps an episode." in text and "Its dynamics are known" in text
