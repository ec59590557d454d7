"""Logistic regression on probabilities, without intercept, and how much each row moves it."""

import numpy as np
from jaxtyping import Float64

RIDGE = 1e-6
"""Penalty that keeps coefficients finite where verdicts are all one way, too small to see elsewhere."""


def sigmoid(logit: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """1 / (1 + exp(-logit)), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logit)))


def fit_logistic(
    features: Float64[np.ndarray, "rows columns"],
    target: Float64[np.ndarray, "rows"],
    weight: Float64[np.ndarray, "rows"],
) -> Float64[np.ndarray, "columns"]:
    """Weighted maximum likelihood of P = sigmoid(features @ coefficients), the target being a probability."""
    # Loading it takes a second, and only a fit needs it.
    from scipy.optimize import minimize

    def loss(coefficients: Float64[np.ndarray, "columns"]) -> tuple[float, Float64[np.ndarray, "columns"]]:
        logit = features @ coefficients
        value = weight @ (np.logaddexp(0, logit) - target * logit)
        slope = features.T @ (weight * (sigmoid(logit) - target))
        ridge = RIDGE * coefficients
        return float(value + 0.5 * ridge @ coefficients), slope + ridge

    found = minimize(loss, np.zeros(features.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-8})
    return np.asarray(found.x, dtype=np.float64)


def influences(
    features: Float64[np.ndarray, "rows columns"],
    target: Float64[np.ndarray, "rows"],
    weight: Float64[np.ndarray, "rows"],
    coefficients: Float64[np.ndarray, "columns"],
) -> Float64[np.ndarray, "rows columns"]:
    """How the fitted coefficients would move, to first order, if a row counted once more.

    They are w_i H^-1 x_i (y_i - p_i) with H = sum of w_i p_i (1 - p_i) x_i x_i^T; their sum over rows is 0.
    """
    fitted = sigmoid(features @ coefficients)
    curvature = weight * fitted * (1 - fitted)
    information = features.T @ (curvature[:, None] * features)
    scores = (weight * (target - fitted))[:, None] * features
    return np.asarray(scores @ np.linalg.pinv(information, hermitian=True))
