"""An explanation's numbers in words, for readers who know no reinforcement learning, and as a table.

The functions read the dictionary that ``Explainer.explain`` returns, whose docstring lists its keys.
"""

from math import floor

from cql.text import aligned


def paragraph(found: dict) -> str:
    """Four to seven sentences, or one where the episode is over."""
    if found["verdict"] == "terminal":
        return f"{_place(found).capitalize()} is where an episode ends: there is nothing to decide."
    sentences = [sentence(found) for sentence in (_headline, _data, _rating, _split, _hazard, _reward, _safer)]
    return " ".join(filter(None, sentences)).replace("probability of below", "probability below")


def table(found: dict) -> str:
    """The numbers of every action as lines; an asterisk marks the chosen one."""
    hazard, q = found["hazard"], found["q"]
    names = [("*" if a == found["chosen"]["index"] else " ") + name for a, name in enumerate(found["actions"])]
    columns = [[" action", *names], ["logged", *(f"{count:,}" for count in found["support"]["counts"])]]
    if q is not None:
        columns.append(["Q", *map(number, q)])
    columns.append(["probability" if q is None else "softmax", *map(percent, found["probabilities"])])
    if hazard is not None:
        columns.append(["hazard", *map(percent, hazard["by_action"])])
    return "\n".join([f"{found['member']}, {_place(found)} (* what it chooses)", *aligned(list(zip(*columns)))])


def number(x: float | None) -> str:
    """Two decimals; none from 1,000 on. A dash for an action that the policy may not take."""
    if x is None:
        return "–"
    text = f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.2f}"
    return (text[1:] if float(text.replace(",", "")) == 0 and x < 0 else text).replace("-", "−")


def percent(p: float | None) -> str:
    """Two significant digits, as 38 %, 4.1 %, 0.21 %; 0 % and 100 % only where that is exact. A dash as ``number``."""
    if p is None:
        return "–"
    if p <= 0 or p >= 1 - 1e-12:
        return "0 %" if p <= 0 else "100 %"
    if p < 0.0001:
        return "below 0.01 %"
    if p > 0.995:
        return f"{floor(p * 1e4) / 100:.2f} %"
    return f"{100 * p:.{0 if p >= 0.0995 else 1 if p >= 0.00995 else 2}f} %"


def odds(p: float) -> str:
    """The percentage, for small probabilities with the number of cases in which one is to be expected."""
    return f"{percent(p)} (1 in {1 / p:,.0f})" if p >= 1e-4 and round(100 * p, 1) < 9.5 else percent(p)


def times(count: int) -> str:
    """How often: never, once, twice, 3 times."""
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count:,} times")


def _doing(name: str, form: str = "moving taking") -> str:
    """An action as a part of a sentence: "moving left", "taking action 3"."""
    return f"{form.split()[name not in ('up', 'down', 'left', 'right')]} {name}"


def _place(found: dict) -> str:
    if found["cell"] is not None:
        return "row {}, column {} (counted from 0 at the top left)".format(*found["cell"])
    state = found["observation"] if found["state"] is None else found["state"]
    if isinstance(state, list):
        numbers = [f"{x:.4g}".replace("-", "−") for x in state]
        named = numbers if not found["features"] else [f"{name} {x}" for name, x in zip(found["features"], numbers)]
        return f"the observation ({', '.join(named)})"
    return f"state {state if found['state_name'] is None else found['state_name']}"


def _headline(found: dict) -> str:
    action, chosen, verdict = _doing(found["action"]["name"]), _doing(found["chosen"]["name"]), found["verdict"]
    place = f"{'At' if _place(found).startswith('the') else 'In'} {_place(found)}, {action}"
    if found["action"] == found["chosen"]:
        return f"{place} is what the model chooses" + (
            "." if verdict == "chosen" else ", but nothing in its data supports that.")
    if verdict == "worse":
        return f"{place} is worse than {chosen}, which the model chooses."
    if verdict == "as good":
        scores, outcome, kind = found["q"] or found["probabilities"], found["return"], "is as good as"
        if outcome and outcome["action"] > outcome["chosen"] and number(outcome["action"]) != number(outcome["chosen"]):
            kind = "promises a higher total reward than"
        text = f"{place} {kind} the model's choice, {chosen}"
        if scores[found["action"]["index"]] >= scores[found["chosen"]["index"]]:
            return f"{text}."
        return f"{text}, though the model {'rates it lower' if found['q'] else 'takes it for less likely'}."
    choice = _doing(found["chosen"]["name"], "move take")
    if verdict == "unsafe":
        return f"{place} is unsafe: it adds to the risk of meeting a hazard. The model chooses to {choice}."
    return f"{place} is not supported by the data that the model learned from; it chooses to {choice}."


def _data(found: dict) -> str:
    support, counts, chosen = found["support"], found["support"]["counts"], found["chosen"]
    total = support["state_count"]
    if not support["by_state"]:
        return {True: "Behaviour Cloning of the data finds this action likely here.",
                False: "Behaviour Cloning of the data finds this action unlikely here.",
                None: "Whether the data support it is not known: no Behaviour Cloning of them is at hand."}[
                    support["supported"]]
    if total == 0:
        return ("The data never came here, so nothing in them tells what any action leads to: "
                "whatever the model says here is carried over from other places.")
    here = f"The data were here {times(total)}"
    if support["count"] == 0:
        tried = [f"{name} {times(count)}" for name, count in zip(found["actions"], counts) if count]
        listed = " and ".join(filter(None, [", ".join(tried[:-1]), tried[-1]]))
        return f"{here} and never took this action; what they took was {listed}."
    if support["count"] == total:
        text, others = f"{here} and took this action {'that time' if total == 1 else 'every time'}", "never {}"
    else:
        text = f"{here} and took this action {times(support['count'])} ({percent(support['share'])})"
        others = f"{{}} {times(counts[chosen['index']])}"
    return f"{text}." if found["action"] == found["chosen"] else f"{text}, {others.format(chosen['name'])}."


def _rating(found: dict) -> str:
    action, chosen, cloned = found["action"]["index"], found["chosen"]["index"], found["q"] is None
    scores = [percent(p) for p in found["probabilities"]] if cloned else [number(q) for q in found["q"]]
    text = (f"The model imitates the data and gives it a probability of {scores[action]}" if cloned else
            f"The model rates it at {scores[action]}")
    if found["action"] == found["chosen"]:
        values = found["probabilities"] if cloned else found["q"]
        others = (a for a, may in enumerate(found["possible"]) if may and a != chosen)
        second = max(others, key=values.__getitem__, default=None)
        if second is None:
            return f"{text}; there is no other action."
        return f"{text}; next comes {found['actions'][second]} with {scores[second]}."
    if scores[action] == scores[chosen]:
        return f"{text}, no different from {found['chosen']['name']}."
    gap = "" if cloned else f": a gap of {number(found['gap']['difference'])}"
    return f"{text}, against {scores[chosen]} for {found['chosen']['name']}{gap}."


def _split(found: dict) -> str:
    """What the gap between the two Q-values consists of."""
    gap, support = found["gap"], found["support"]
    if gap is None or support["state_count"] == 0:
        return ""
    if support["supported"] is False:
        return ("With no data behind it, that rating is a guess from other places and other actions, "
                "which training pushes down on purpose.")
    if found["action"] == found["chosen"]:
        return ""
    if gap["td"] is None:
        return ("How much of that comes from the data cannot be said, because they never took "
                f"{found['chosen']['name']} here, whose rating is a guess.")
    if number(gap["difference"]) == number(0):
        return ""
    text = (f"The rewards in the data and what follows them account for {number(gap['td'])} of that gap"
            if gap["td"] >= 0 else
            f"By the rewards in the data and what follows them the gap would be {number(gap['td'])}")
    if gap["residual"] is None:
        return f"{text}; the penalty for rare actions, with what training has not fitted, {_adds(gap['penalty'])}."
    text += f"; the penalty for rare actions {_adds(gap['penalty'])}"
    if number(abs(gap["residual"])) != number(0):
        text += f", and what training has not fitted {_adds(gap['residual'])}"
    return f"{text}."


def _adds(x: float) -> str:
    if number(abs(x)) == number(0):
        return "changes nothing"
    return f"widens it by {number(x)}" if x > 0 else f"narrows it by {number(-x)}"


def _hazard(found: dict) -> str:
    hazard = found["hazard"]
    if hazard is None:
        unknown = ("no exact model of the environment is known" if not found["model_known"] else
                   "no state of the environment shows this observation" if found["state"] is None else None)
        return f"How safe it is cannot be said: {unknown}." if unknown else "The environment has no hazards."
    steps = "the next step" if found["steps"] == 1 else f"the next {found['steps']} steps"
    if hazard["action"] == hazard["chosen"] == 0:
        return f"If the model goes on from there, it meets no hazard within {steps}."
    soon = "" if hazard["action_next"] == 0 else (
        ", all of it at the next step" if hazard["action_next"] >= hazard["action"] * (1 - 1e-9)
        else f", {percent(hazard['action_next'])} already at the next step")
    other = "" if found["action"] == found["chosen"] else (
        f"; after {found['chosen']['name']} it is {odds(hazard['chosen'])}")
    return (f"If the model goes on from there, it meets a hazard within {steps} with a probability "
            f"of {odds(hazard['action'])}{soon}{other}.")


def _reward(found: dict) -> str:
    outcome = found["return"]
    if outcome is None:
        return ""
    action, chosen = number(outcome["action"]), number(outcome["chosen"])
    other = "" if found["action"] == found["chosen"] else (
        ", the same for both" if action == chosen else f", after {found['chosen']['name']} {chosen}")
    return f"The total reward to expect is {action}{other}."


def _safer(found: dict) -> str:
    """Of the chosen action: whether another one has a clearly lower hazard probability."""
    hazard = found["hazard"]
    if hazard is None or found["action"] != found["chosen"]:
        return ""
    least = min(p for p in hazard["by_action"] if p is not None)
    if least >= hazard["chosen"] - hazard["margin"]:
        return ""
    safest = found["actions"][hazard["by_action"].index(least)]
    return f"{_doing(safest, 'Moving Taking')} would be safer, at {odds(least)}."
