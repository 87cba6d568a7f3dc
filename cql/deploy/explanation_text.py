"""An explanation's numbers as a paragraph for those who know no reinforcement learning. Pure functions of JSON."""

from math import floor

DIRECTIONS = ("up", "down", "left", "right")


def paragraph(found: dict) -> str:
    """Four to seven sentences on the explanation of ``reasons.explain``; the keys it reads are listed there."""
    if found["verdict"] == "terminal":
        return f"{_capital(_place(found))} is where an episode ends: there is nothing to decide."
    return " ".join(part for part in (_headline(found), _data(found), _rating(found), _split(found), _hazard(found),
                                      _reward(found), _safer(found)) if part)


def table(found: dict) -> str:
    """The numbers of every action as lines; an asterisk marks the chosen one."""
    hazard = found["hazard"]
    columns = [("action", found["actions"]), ("logged", [f"{count:,}" for count in found["support"]["counts"]])]
    if found["q"] is not None:
        columns.append(("Q", [number(q) for q in found["q"]]))
    columns.append(("softmax" if found["q"] is not None else "probability",
                    [percent(p) for p in found["probabilities"]]))
    if hazard is not None:
        columns.append(("hazard", [percent(p) for p in hazard["by_action"]]))
    rows = [[name for name, _ in columns], *zip(*(cells for _, cells in columns))]
    widths = [max(len(row[n]) for row in rows) for n in range(len(columns))]
    marks = [" ", *("*" if a == found["chosen"]["index"] else " " for a in range(len(found["actions"])))]
    lines = ["  ".join([mark + row[0].ljust(widths[0]),
                        *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
             for mark, row in zip(marks, rows)]
    return f"{found['member']}, {_place(found)} (* what it chooses)\n" + "\n".join(line.rstrip() for line in lines)


def number(x: float) -> str:
    """Two decimals; none from 1,000 on."""
    text = f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.2f}"
    return (text[1:] if float(text.replace(",", "")) == 0 and x < 0 else text).replace("-", "−")


def percent(p: float) -> str:
    """As many digits as one can use: 38 %, 4.1 %, 0.21 %; never 0 % or 100 % of what is not."""
    if p <= 0 or p >= 1 - 1e-12:
        return "0 %" if p <= 0 else "100 %"
    if p < 0.0001:
        return "below 0.01 %"
    if p > 0.995:
        return f"{floor(p * 1e4) / 100:.2f} %"
    return f"{100 * p:.{0 if p >= 0.0995 else 1 if p >= 0.00995 else 2}f} %"


def odds(p: float) -> str:
    """``percent``, and for small probabilities how rare that is."""
    return f"{percent(p)} (1 in {1 / p:,.0f})" if p >= 1e-4 and round(100 * p, 1) < 9.5 else percent(p)


def times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count:,} times")


def _of(p: str) -> str:
    return p if p.startswith("below") else f"of {p}"


def doing(name: str) -> str:
    """An action as the subject of a sentence."""
    return f"moving {name}" if name in DIRECTIONS else f"taking {name}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _place(found: dict) -> str:
    if found["cell"] is not None:
        return "row {}, column {} (counted from 0 at the top left)".format(*found["cell"])
    if found["state"] is not None or not isinstance(found["observation"], list):
        return f"state {found['observation'] if found['state'] is None else found['state']}"
    return f"the observation ({', '.join(f'{x:.4g}'.replace('-', '−') for x in found['observation'])})"


def _is_chosen(found: dict) -> bool:
    return found["action"]["index"] == found["chosen"]["index"]


def _headline(found: dict) -> str:
    action, chosen, verdict = doing(found["action"]["name"]), doing(found["chosen"]["name"]), found["verdict"]
    to_do = chosen.replace("moving", "to move", 1).replace("taking", "to take", 1)
    place = f"{'At' if found['state'] is None and isinstance(found['observation'], list) else 'In'} {_place(found)}"
    if _is_chosen(found):
        return f"{place}, {action} is what the model chooses" + (
            "." if verdict == "chosen" else ", but nothing in its data supports that.")
    scores = found["probabilities"] if found["q"] is None else found["q"]
    lower = scores[found["action"]["index"]] < scores[found["chosen"]["index"]]
    though = "."
    if lower:
        though = f", though the model {'takes it for less likely' if found['q'] is None else 'rates it lower'}."
    return f"{place}, " + {
        "unsafe": f"{action} is unsafe: it adds to the risk of meeting a hazard. The model chooses {to_do}.",
        "unsupported": f"{action} is not supported by the data that the model learned from; it chooses {to_do}.",
        "as good": f"{action} {'promises a higher total reward than' if _better(found) else 'is as good as'} "
                   f"the model's choice, {chosen}{though}",
        "worse": f"{action} is worse than {chosen}, which the model chooses."}[verdict]


def _better(found: dict) -> bool:
    """Whether the total reward after the action is higher than after the chosen one, by more than is shown as equal."""
    outcome = found["return"]
    return outcome is not None and outcome["action"] > outcome["chosen"] and (
        number(outcome["action"]) != number(outcome["chosen"]))


def _data(found: dict) -> str:
    support, counts = found["support"], found["support"]["counts"]
    total, chosen = support["state_count"], found["chosen"]
    if total == 0:
        return ("The data never came here, so nothing in them tells what any action leads to: "
                "whatever the model says here is carried over from other places.")
    here = f"The data were here {times(total)}"
    if support["count"] == 0:
        tried = [f"{name} {times(count)}" for name, count in zip(found["actions"], counts) if count]
        return f"{here} and never took this action; what they took was {_listed(tried)}."
    if support["count"] == total:
        return f"{here} and took this action {'that time' if total == 1 else 'every time'}" + (
            "." if _is_chosen(found) else f", never {chosen['name']}.")
    own = f"{here} and took this action {times(support['count'])} ({percent(support['share'])})"
    return own + ("." if _is_chosen(found) else f", {chosen['name']} {times(counts[chosen['index']])}.")


def _rating(found: dict) -> str:
    action, chosen = found["action"], found["chosen"]
    bc = found["q"] is None
    scores, show = (found["probabilities"], lambda p: _of(percent(p))) if bc else (found["q"], number)
    what = "The model imitates the data and gives it a probability" if bc else "The model rates it at"
    if _is_chosen(found):
        others = [a for a in range(len(scores)) if a != chosen["index"]]
        if not others:
            return f"{what} {show(scores[chosen['index']])}; there is no other action."
        second = max(others, key=lambda a: scores[a])
        second_score = show(scores[second]).removeprefix("of ")
        return f"{what} {show(scores[chosen['index']])}; next comes {found['actions'][second]} with {second_score}."
    mine, best = (show(scores[a["index"]]) for a in (action, chosen))
    if mine == best:
        return f"{what} {mine}, no different from {chosen['name']}."
    return f"{what} {mine}, against {best.removeprefix('of ')} for {chosen['name']}" + (
        "." if bc else f": a gap of {number(found['gap']['difference'])}.")


def _split(found: dict) -> str:
    gap, support = found["gap"], found["support"]
    if gap is None or support["state_count"] == 0:
        return ""
    if not support["supported"]:
        return ("With no data behind it, that rating is a guess from other places and other actions, "
                "which training pushes down on purpose.")
    if _is_chosen(found):
        return ""
    if gap["td"] is None:
        return ("How much of that comes from the data cannot be said, because they never took "
                f"{found['chosen']['name']} here, whose rating is a guess.")
    if number(gap["difference"]) == number(0):
        return ""
    data = (f"The rewards in the data and what follows them account for {number(gap['td'])} of that gap"
            if gap["td"] >= 0 else
            f"By the rewards in the data and what follows them the gap would be {number(gap['td'])}")
    if gap["residual"] is None:
        return f"{data}; the penalty for rare actions, with what training has not fitted, {_adds(gap['penalty'])}."
    rest = f", and what training has not fitted {_adds(gap['residual'])}"
    if number(abs(gap["residual"])) == number(0):
        rest = ""
    return f"{data}; the penalty for rare actions {_adds(gap['penalty'])}{rest}."


def _adds(x: float) -> str:
    if number(abs(x)) == number(0):
        return "changes nothing"
    return f"widens it by {number(x)}" if x > 0 else f"narrows it by {number(-x)}"


def _hazard(found: dict) -> str:
    hazard = found["hazard"]
    if hazard is None:
        if not found["model_known"]:
            return "How safe it is cannot be said: no exact model of the environment is known."
        if found["state"] is None:
            return "How safe it is cannot be said: no state of the environment shows this observation."
        return "The environment has no hazards."
    steps = "the next step" if found["steps"] == 1 else f"the next {found['steps']} steps"
    if hazard["action"] == 0 == hazard["chosen"]:
        return f"If the model goes on from there, it meets no hazard within {steps}."
    soon = "" if hazard["action_next"] == 0 else (
        ", all of it at the next step" if hazard["action_next"] >= hazard["action"] * (1 - 1e-9)
        else f", {percent(hazard['action_next'])} already at the next step")
    text = (f"If the model goes on from there, it meets a hazard within {steps} with a probability "
            f"{_of(odds(hazard['action']))}{soon}")
    return text + ("." if _is_chosen(found) else f"; after {found['chosen']['name']} it is {odds(hazard['chosen'])}.")


def _reward(found: dict) -> str:
    outcome = found["return"]
    if outcome is None:
        return ""
    text = f"The total reward to expect is {number(outcome['action'])}"
    if _is_chosen(found):
        return text + "."
    same = number(outcome["action"]) == number(outcome["chosen"])
    return text + (", the same for both." if same else
                   f", after {found['chosen']['name']} {number(outcome['chosen'])}.")


def _safer(found: dict) -> str:
    """Of the chosen action alone: whether another one has a clearly lower hazard probability."""
    hazard = found["hazard"]
    if hazard is None or not _is_chosen(found):
        return ""
    safest = min(range(len(found["actions"])), key=lambda a: hazard["by_action"][a])
    if hazard["by_action"][safest] >= hazard["chosen"] - hazard["margin"]:
        return ""
    return f"{_capital(doing(found['actions'][safest]))} would be safer, at {odds(hazard['by_action'][safest])}."


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
