import time

import numpy as np
import pytest
import torch

from moce.transfer.metrics import scorer
from moce.transfer.probe import (
    FIXED_C,
    INVERSE_L2,
    Labelled,
    fit_logistic,
    folds,
    joined,
    knn,
    linear,
    neighbours,
    vote,
)


def clouds(
    num_images: int, width: int = 24, num_classes: int = 7, seed: int = 0, spread: float = 1.0
) -> Labelled:
    """Overlapping classes in features as a masked autoencoder has them: correlated, and far from the origin."""
    fixed = torch.Generator().manual_seed(100)
    mixing = torch.randn(width, width, generator=fixed) * torch.logspace(0, -2, width)
    centres = torch.randn(num_classes, width, generator=fixed)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % num_classes
    noise = torch.randn(num_images, width, generator=generator) * spread
    return Labelled((centres[labels] + noise) @ mixing + 1, labels)


TRAIN, VAL, TEST = clouds(280, seed=1), clouds(70, seed=2), clouds(500, seed=3)
SCORE = scorer("top1", 7)


def differing(ours: torch.Tensor, theirs: np.ndarray) -> int:
    return int((ours.numpy() != theirs).sum())


# ---------------------------------------------------------------------------------------------- nearest neighbours


def test_weighted_vote_by_hand() -> None:
    # One query. Class 1 has the nearest image, class 0 the two after it:
    # exp(0.9 / T) against 2 exp(0.8 / T) meet at T = 0.1 / ln 2 = 0.144.
    similarities = torch.tensor([[0.9, 0.8, 0.8]], dtype=torch.float64)
    labels = torch.tensor([[1, 0, 0]])
    assert vote(similarities, labels, 3, temperature=0.14).item() == 1
    assert vote(similarities, labels, 3, temperature=0.15).item() == 0
    assert vote(similarities[:, :1], labels[:, :1], 3, temperature=0.15).item() == 1


def test_a_tiny_temperature_does_not_overflow() -> None:
    similarities = torch.tensor([[0.9, 0.8, 0.8]], dtype=torch.float64)
    assert vote(similarities, torch.tensor([[2, 0, 0]]), 3, temperature=1e-6).item() == 2


def test_neighbours_are_by_angle_not_by_distance() -> None:
    bank = torch.tensor([[10.0, 0.0], [0.1, 0.1], [0.0, 1.0]])
    similarities, indices = neighbours(bank, torch.tensor([[1.0, 0.1]]), k=3)
    assert indices.tolist() == [[0, 1, 2]]
    assert similarities[0, 0].item() == pytest.approx(1 / 1.01**0.5)


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (10, 0.07), (30, 0.5)])
def test_knn_predicts_what_scikit_learn_predicts(k: int, temperature: float) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    theirs = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    theirs.fit(
        torch.cat([TRAIN.features, VAL.features]).double().numpy(),
        torch.cat([TRAIN.labels, VAL.labels]).numpy(),
    )
    ours = knn(TRAIN, VAL, TEST, 7, SCORE, [k], [temperature])
    assert differing(ours.predictions, theirs.predict(TEST.features.double().numpy())) <= 1
    assert SCORE(ours.predictions, TEST.labels) > 0.5


def test_knn_chooses_on_validation_and_says_so() -> None:
    outcome = knn(TRAIN, VAL, TEST, 7, SCORE, [1, 5, 20, 10_000], [0.05, 0.5])
    settings = outcome.settings
    assert settings["grid"] == {
        "whiten": [0.0],
        "k": [1, 5, 20, 280],
        "temperature": [0.05, 0.5],
    }  # k is cut to the bank
    scores = {}
    for k in settings["grid"]["k"]:
        for temperature in settings["grid"]["temperature"]:
            alone = knn(TRAIN, VAL, VAL, 7, SCORE, [k], [temperature])
            scores[k, temperature] = alone.settings["val_score"]
    assert settings["val_score"] == max(scores.values()) == scores[settings["k"], settings["temperature"]]


def test_whitened_knn_predicts_what_scikit_learn_predicts() -> None:
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline

    near = KNeighborsClassifier(10, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    theirs = make_pipeline(PCA(23, whiten=True), near)  # the last axis is below a thousandth of the first
    theirs.fit(
        torch.cat([TRAIN.features, VAL.features]).double().numpy(),
        torch.cat([TRAIN.labels, VAL.labels]).numpy(),
    )
    ours = knn(TRAIN, VAL, TEST, 7, SCORE, [10], [0.07], [1.0])
    assert differing(ours.predictions, theirs.predict(TEST.features.double().numpy())) <= 1
    plain = knn(TRAIN, VAL, TEST, 7, SCORE, [10], [0.07])
    assert differing(ours.predictions, plain.predictions.numpy()) > 1


def test_knn_chooses_the_whitening_on_validation() -> None:
    alone = {w: knn(TRAIN, VAL, TEST, 7, SCORE, [5], [0.05], [w]).settings["val_score"] for w in (0, 0.5, 1)}
    settings = knn(TRAIN, VAL, TEST, 7, SCORE, [5], [0.05], list(alone)).settings
    assert settings["val_score"] == max(alone.values()) == alone[settings["whiten"]]
    assert settings["grid"]["whiten"] == [0, 0.5, 1]


def test_labels_of_test_images_are_never_looked_at() -> None:
    wrong = Labelled(TEST.features, torch.zeros_like(TEST.labels))
    for probe, grid in ((knn, ([1, 5, 20], [0.05, 0.5])), (linear, (INVERSE_L2[::4],))):
        right = probe(TRAIN, VAL, TEST, 7, SCORE, *grid)  # type: ignore[operator]
        assert probe(TRAIN, VAL, wrong, 7, SCORE, *grid).predictions.equal(right.predictions)  # type: ignore[operator]


# --------------------------------------------------------------------------------------------- logistic regression


@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0])
def test_logistic_regression_is_that_of_scikit_learn(c: float) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    (ours,) = fit_logistic(TRAIN, 7, [c])
    scaler = StandardScaler().fit(TRAIN.features.double().numpy())
    theirs = LogisticRegression(C=c, tol=1e-8, max_iter=10_000)
    theirs.fit(scaler.transform(TRAIN.features.double().numpy()), TRAIN.labels.numpy())
    np.testing.assert_allclose(ours.weight.numpy(), theirs.coef_.T, atol=2e-3 * np.abs(theirs.coef_).max())
    predicted = theirs.predict(scaler.transform(TEST.features.double().numpy()))
    assert differing(ours.predict(TEST.features), predicted) <= 1


def test_the_minimum_does_not_depend_on_the_start() -> None:
    """Along the grid each fit starts from the one before; alone it starts from zero."""
    grid = fit_logistic(TRAIN, 7, INVERSE_L2)
    for c, warm in zip(INVERSE_L2, grid):
        (cold,) = fit_logistic(TRAIN, 7, [c])
        assert int((warm.predict(TEST.features) != cold.predict(TEST.features)).sum()) <= 1
        assert warm.gradient < 1e-4
        assert cold.gradient < 1e-4


def test_the_grid_comes_back_in_the_order_asked_for() -> None:
    forward, backward = fit_logistic(TRAIN, 7, [1e-3, 1e-1]), fit_logistic(TRAIN, 7, [1e-1, 1e-3])
    assert forward[0].weight.equal(backward[1].weight)
    assert forward[0].weight.norm() < forward[1].weight.norm()


def test_linear_refits_on_train_and_val() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    outcome = linear(TRAIN, VAL, TEST, 7, SCORE)
    features = torch.cat([TRAIN.features, VAL.features]).double().numpy()
    scaler = StandardScaler().fit(features)
    theirs = LogisticRegression(C=outcome.settings["C"], tol=1e-8, max_iter=10_000)
    theirs.fit(scaler.transform(features), torch.cat([TRAIN.labels, VAL.labels]).numpy())
    assert (
        differing(outcome.predictions, theirs.predict(scaler.transform(TEST.features.double().numpy()))) <= 1
    )
    assert outcome.settings["val_score"] == max(outcome.settings["val_scores"])
    assert outcome.settings["C"] in outcome.settings["grid"]["C"]


def test_constant_and_repeated_features_do_no_harm() -> None:
    def widened(data: Labelled) -> Labelled:
        constant = torch.full((len(data.labels), 2), 0.1)
        return Labelled(torch.cat([data.features, data.features[:, :3], constant], dim=1), data.labels)

    outcome = linear(widened(TRAIN), widened(VAL), widened(TEST), 7, SCORE)
    assert SCORE(outcome.predictions, TEST.labels) == pytest.approx(
        SCORE(linear(TRAIN, VAL, TEST, 7, SCORE).predictions, TEST.labels), abs=0.03
    )


def test_probes_are_the_same_to_the_digit_the_second_time() -> None:
    first, second = (linear(TRAIN, VAL, TEST, 7, SCORE) for _ in range(2))
    assert first.settings == second.settings
    assert first.predictions.equal(second.predictions)


# ------------------------------------------------------------------------------------------- several classes an image


def tagged(data: Labelled) -> Labelled:
    """Which of 7 classes are shown: the image's own and the next one; some cannot be judged in every ninth image."""
    labels = torch.zeros(len(data.labels), 7, dtype=torch.int64)
    images = torch.arange(len(labels))
    labels[images, data.labels] = 1
    labels[images, (data.labels + 1) % 7] = 1
    labels[::9, 2:5] = -1
    return Labelled(data.features, labels)


TAGGED = [tagged(data) for data in (TRAIN, VAL, TEST)]
BY_MAP = scorer("mAP11", 7)


def test_each_class_has_the_logistic_regression_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    outcome = linear(*TAGGED, 7, BY_MAP, [1e-2, 1e-1])
    whole = joined(TAGGED[0], TAGGED[1])
    scaler = StandardScaler().fit(whole.features.double().numpy())
    x, queries = (scaler.transform(f.double().numpy()) for f in (whole.features, TEST.features))
    for number in range(7):
        judged = (whole.labels[:, number] >= 0).numpy()
        theirs = LogisticRegression(C=outcome.settings["C"], tol=1e-8, max_iter=10_000)
        theirs.fit(x[judged], whole.labels[:, number].numpy()[judged])
        expected = theirs.predict_proba(queries)[:, 1]
        np.testing.assert_allclose(outcome.predictions[:, number].numpy(), expected, atol=1e-3)
    assert BY_MAP(outcome.predictions, outcome.labels) > 0.6
    assert outcome.settings["val_score"] == max(outcome.settings["val_scores"])


def test_the_score_of_a_class_is_the_share_of_the_neighbours_that_show_it() -> None:
    similarities = torch.tensor([[0.9, 0.8, 0.7]], dtype=torch.float64)
    labels = torch.tensor([[[1, 0, -1], [0, 1, -1], [1, -1, -1]]])
    first, second, third = np.exp(np.array([0.0, -0.1, -0.2]) / 0.1)
    found = vote(similarities, labels, 3, temperature=0.1)[0].tolist()
    assert found == pytest.approx([(first + third) / (first + second + third), second / (first + second), 0])
    outcome = knn(*TAGGED, 7, BY_MAP, [1, 10, 30], [0.07, 0.5])
    assert outcome.settings["k"] > 1 and BY_MAP(outcome.predictions, outcome.labels) > 0.5


# ----------------------------------------------------------------------------------------------------------- few shots


def test_one_image_of_each_class_is_left_out_in_turn() -> None:
    few = Labelled(TRAIN.features[:21], TRAIN.labels[:21])  # classes 0 to 6, three times
    pairs = folds(few, None)
    assert [len(held.labels) for _, held in pairs] == [7, 7, 7]
    assert all(held.labels.sort().values.tolist() == list(range(7)) for _, held in pairs)
    left_out = torch.cat([held.features for _, held in pairs])
    assert left_out.unique(dim=0).shape[0] == 21
    for fit, held in pairs:
        assert len(fit.labels) == 14 and not (fit.features[:, None] == held.features).all(dim=2).any()
    assert len(folds(TRAIN, None)) == 5  # of 40 images a class: fifths
    assert folds(Labelled(TRAIN.features[:7], TRAIN.labels[:7]), None) == []


def test_few_shots_are_chosen_on_themselves_alone() -> None:
    few = Labelled(TRAIN.features[:35], TRAIN.labels[:35])
    near, straight = (
        knn(few, None, TEST, 7, SCORE, [1, 5, 20], [0.05, 0.5]),
        linear(few, None, TEST, 7, SCORE),
    )
    expected = {}
    for k in (1, 5, 20):
        for t in (0.05, 0.5):
            votes = []
            for fit, held in folds(few, None):
                cosines, indices = neighbours(fit.features, held.features, k)
                votes.append(SCORE(vote(cosines, fit.labels[indices], 7, t), held.labels))
            expected[k, t] = sum(votes) / 5
    assert near.settings["val_score"] == pytest.approx(max(expected.values()))
    assert expected[near.settings["k"], near.settings["temperature"]] == pytest.approx(max(expected.values()))
    cold = fit_logistic(few, 7, [straight.settings["C"]])[0]
    assert differing(cold.predict(TEST.features), straight.predictions.numpy()) <= 1  # refitted on all shots
    assert SCORE(straight.predictions, TEST.labels) > 0.4


def test_with_one_image_a_class_nothing_is_chosen() -> None:
    one = Labelled(TRAIN.features[:7], TRAIN.labels[:7])
    near, straight = knn(one, None, TEST, 7, SCORE, [1, 5], [0.05]), linear(one, None, TEST, 7, SCORE)
    assert near.settings["k"] == 1 and near.settings["val_score"] is None
    assert straight.settings["C"] == FIXED_C and straight.settings["val_score"] is None
    assert near.predictions.equal(neighbours(one.features, TEST.features, 1)[1][:, 0])
    assert SCORE(straight.predictions, TEST.labels) > 0.25


@pytest.mark.slow
def test_the_whole_grid_takes_seconds() -> None:
    """Of one core: the tests run on one thread."""
    train = clouds(4000, 192, 100, seed=1)
    start = time.process_time()
    fit_logistic(train, 100, INVERSE_L2)
    assert time.process_time() - start < 20
