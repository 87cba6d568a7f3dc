"""What alpha means under another TD loss, another number of quantiles, another scale of rewards.

CQL's penalty is the same everywhere, logsumexp Q(s,.) - Q(s,a); the TD error beside it is not, and alpha only has a
meaning against its slope. Near a residual x = Q - y of 0 every loss here has slope k x:

    "mse"             x^2                                                    k = 2       this project's default
    "half_mse"        x^2 / 2                                                k = 1       the paper's (arXiv 2006.04779)
    "huber"           x^2 / 2 up to |x| = knee, then straight                k = 1       bounded by knee
    "quantile_huber"  sum_i mean_j |tau_i - 1{u_ij < 0}| huber(u_ij)         k = N / 2   bounded by knee N / 2

and alpha / k is what counts. For the two squares that is exact. For the other two it holds while every residual lies
within the knee (quantiles: a common shift of all N quantiles against a target without spread); beyond it their slope
is bounded, no constant factor converts alpha, and rewards lose their say: see `softmax_band`.

Pure functions of numbers and NumPy arrays. The quantile loss is that of QR-DQN (arXiv 1710.10044), summed over the
predicted quantiles i and averaged over the target's j; the penalty then acts on the mean of the quantiles.
"""

import numpy as np

CONVENTIONS = ("mse", "half_mse", "huber", "quantile_huber")


def td_slope(convention: str, num_quantiles: int | None = None) -> float:
    """k: the slope of the TD loss per unit of a small residual.

    Raises:
        ValueError: an unknown convention; num_quantiles missing or below 1 for "quantile_huber", given for another.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"The TD loss must be one of {', '.join(CONVENTIONS)}, got {convention!r}.")
    if convention != "quantile_huber":
        if num_quantiles is not None:
            raise ValueError(f"num_quantiles has no meaning for {convention!r}.")
        return 2.0 if convention == "mse" else 1.0
    if num_quantiles is None or int(num_quantiles) != num_quantiles or num_quantiles < 1:
        raise ValueError(f"quantile_huber needs num_quantiles, a whole number of at least 1; got {num_quantiles}.")
    return num_quantiles / 2


def convert_alpha(alpha, source: str, target: str, source_quantiles: int | None = None,
                  target_quantiles: int | None = None):
    """The alpha of `target` that weighs the penalty against the TD error as `alpha` does under `source`.

    Exact between "mse" and "half_mse"; for the Huber losses while residuals lie within the knee.

    Args:
        alpha: a number or an array, not negative.
        source_quantiles, target_quantiles: N, for "quantile_huber" alone.

    Returns:
        alpha k_target / k_source, shaped as alpha.

    Raises:
        ValueError: alpha is negative or not finite; as `td_slope`.
    """
    alpha = _checked(alpha)
    return alpha * (td_slope(target, target_quantiles) / td_slope(source, source_quantiles))


def scale_rewards(alpha, scale: float):
    """Rewards times `scale` at alpha are the original rewards at (alpha / scale, temperature 1 / scale).

    For a squared TD loss, exactly: with Q' = scale Q the objective is scale^2 times
    (Q - y)^2 + (alpha / scale) [t logsumexp(Q / t) - Q(s,a)], t = 1 / scale. So no alpha undoes a scale: the softmax
    grows sharper with it.

    Raises:
        ValueError: alpha is negative or not finite, scale is not positive.
    """
    if not np.isfinite(scale) or scale <= 0:
        raise ValueError(f"The reward scale must be positive and finite, got {scale}.")
    return _checked(alpha) / scale, 1 / scale


def softmax_band(alpha, convention: str = "huber", num_quantiles: int | None = None, knee: float = 1.0):
    """(low, high): where p / beta must lie at every stationary point, whatever the rewards.

    Stationarity on a logged pair is slope + alpha (p / beta - 1) = 0. A slope bounded by b leaves p / beta in
    [1 - b / alpha, 1 + b / alpha]: b = knee for "huber", knee N / 2 for "quantile_huber". A square has no bound, and
    gives (0, inf).

    Args:
        alpha: a number or an array, in units of `convention`; 0 gives (0, inf). knee: of torch's `huber_loss`.

    Raises:
        ValueError: as `td_slope`; a knee that is not positive.
    """
    alpha, slope = _checked(alpha), td_slope(convention, num_quantiles)
    if not np.isfinite(knee) or knee <= 0:
        raise ValueError(f"The knee must be positive and finite, got {knee}.")
    bounded = convention in ("huber", "quantile_huber")
    with np.errstate(divide="ignore"):
        width = np.divide(slope * knee, alpha) if bounded else np.full_like(alpha, np.inf, dtype=np.float64)
    return np.maximum(0.0, 1 - width), 1 + width


def greedy_is_blind(beta, alpha, convention: str = "huber", num_quantiles: int | None = None, knee: float = 1.0):
    """Whether no reward at all can make the greedy action other than the most logged one: beta [..., A] -> [...] bool.

    The case where beta_1 low > beta_2 high for its two largest entries and the band of `softmax_band`: with b / alpha
    < 1 that is beta_1 / beta_2 > (alpha + b) / (alpha - b). A state with a single logged action is blind under any loss.

    Args:
        beta: action frequencies, rows summing to 1; A of at least 2.
    """
    low, high = softmax_band(alpha, convention, num_quantiles, knee)
    second, first = np.moveaxis(np.sort(np.asarray(beta, dtype=np.float64), axis=-1)[..., -2:], -1, 0)
    with np.errstate(invalid="ignore"):
        return (second == 0) | (first * low > second * high * (1 + 1e-12))   # at equality the two may tie


def _checked(alpha):
    array = np.asarray(alpha, dtype=np.float64)
    if not (np.isfinite(array) & (array >= 0)).all():
        raise ValueError(f"alpha must be finite and not negative, got {alpha}.")
    return array[()]
