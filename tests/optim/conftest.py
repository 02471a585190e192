"""The paper's algorithm 1 in plain Python numbers, for the tests to hold every path to."""

import math

import pytest


def beta3_of_the_paper(t, beta3, warmup, beta_start):
    """Equation (beta3 schedule) of section 3.1, as it is printed there."""
    mu = t / warmup
    logs = math.log(beta_start) * math.log(beta3)
    return min(math.exp(logs / ((1 - mu) * math.log(beta3) + mu * math.log(beta_start))), beta3)


def one_weight(p, gradients, lr, betas, eps, weight_decay, alpha, alpha_warmup, beta3_warmup):
    """A single float64 weight after the steps of algorithm 1 with the given gradients."""
    beta1, beta2, beta3_end = betas
    m1 = m2 = v = 0.0
    for t, g in enumerate(gradients, 1):
        alpha_t = min(alpha * t / alpha_warmup, alpha) if alpha_warmup else alpha
        beta3 = beta3_of_the_paper(t, beta3_end, beta3_warmup, beta1) if beta3_warmup else beta3_end
        m1 = beta1 * m1 + (1 - beta1) * g
        m2 = beta3 * m2 + (1 - beta3) * g
        v = beta2 * v + (1 - beta2) * g * g
        step = (m1 / (1 - beta1**t) + alpha_t * m2) / (math.sqrt(v / (1 - beta2**t)) + eps)
        p = p - lr * (step + weight_decay * p)
    return p


@pytest.fixture(scope="session")
def oracle():
    return one_weight


@pytest.fixture(scope="session")
def beta3_oracle():
    return beta3_of_the_paper
