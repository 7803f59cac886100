import copy
import pickle

import numpy as np
import pandas
import pytest
from bertron_client import Client, InvalidInputError
from bertron_client.integrations.sklearn import BertronVectorizer
from fake_triton_server import EMBEDDING_SIZE, vector_of
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks, get_tags

TEXTS = [f"text number {number}" for number in range(20)]  # three requests of the server


@pytest.fixture
def vectorizer(server):
    opened = BertronVectorizer(server.http_url)
    yield opened
    opened.close()


def expected(texts):
    return np.array([vector_of(text) for text in texts])


def pickled_and_back(vectorizer):
    return pickle.loads(pickle.dumps(vectorizer))  # noqa: S301


@pytest.mark.parametrize("collection", [list, tuple, np.array, pandas.Series, iter])
def test_texts_become_rows(server, protocol, collection):
    vectorizer = BertronVectorizer(server.url(protocol))
    rows = vectorizer.fit_transform(collection(TEXTS))
    np.testing.assert_array_equal(rows, expected(TEXTS))
    assert rows.dtype == np.float32
    assert vectorizer.fit(X=TEXTS) is vectorizer
    np.testing.assert_array_equal(vectorizer.transform(X=TEXTS), rows)
    vectorizer.close()


def test_fit_asks_for_the_size_only(server, vectorizer):
    vectorizer.fit(TEXTS, y=[0] * 20)
    assert not server.behaviour.requests
    names = vectorizer.get_feature_names_out()
    assert list(names[:2]) == ["bertronvectorizer0", "bertronvectorizer1"]
    assert len(names) == EMBEDDING_SIZE
    assert (
        len(BertronVectorizer(server.http_url, dimensions=4).fit(TEXTS).get_feature_names_out())
        == 4
    )


def test_transform_needs_no_fit(vectorizer):
    np.testing.assert_array_equal(vectorizer.transform(TEXTS), expected(TEXTS))
    with pytest.raises(NotFittedError):
        vectorizer.get_feature_names_out()
    assert vectorizer.transform([]).shape == (0, EMBEDDING_SIZE)


def test_options_reach_the_server_and_can_be_set(server, vectorizer):
    vectorizer.set_params(truncate="left", dimensions=4, normalize=True, timeout_s=2)
    cut = expected(TEXTS)[:, :4]
    rows = vectorizer.fit_transform(TEXTS)
    np.testing.assert_allclose(rows, cut / np.linalg.norm(cut, axis=1, keepdims=True), rtol=1e-5)
    parameters = server.behaviour.requests[-1].parameters
    assert parameters["truncate"] == "left"
    assert parameters["timeout"] <= 2_000_000
    vectorizer.set_params(client_options={"token": "secret"})
    vectorizer.transform(["a"])
    assert server.behaviour.requests[-1].headers["authorization"] == "Bearer secret"


def test_dimensions_beyond_the_model_are_refused_when_fitted(server):
    with pytest.raises(ValueError, match="dimensions is 17"):
        BertronVectorizer(server.http_url, dimensions=17).fit(TEXTS)


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_set_params,
        estimator_checks.check_valid_tag_types,
    ],
)
def test_scikit_learns_own_checks_that_need_no_numbers(check):
    check("BertronVectorizer", BertronVectorizer("http://127.0.0.1:1"))


def test_wrong_arguments_are_refused_when_first_used(server):
    with pytest.raises(TypeError, match="neither url nor client"):
        BertronVectorizer().fit(TEXTS)
    with Client(server.http_url) as client, pytest.raises(TypeError, match="url and a client"):
        BertronVectorizer(server.http_url, client=client).transform(TEXTS)


def test_tags(vectorizer):
    tags = get_tags(vectorizer)
    assert tags.input_tags.string
    assert not tags.input_tags.two_d_array
    assert not tags.requires_fit


@pytest.mark.parametrize("copied", [clone, copy.copy, copy.deepcopy, pickled_and_back])
def test_copies_work_and_have_connections_of_their_own(server, copied):
    vectorizer = BertronVectorizer(server.http_url, dimensions=4, client_options={"timeout_s": 9})
    vectorizer.transform(TEXTS)
    other = copied(vectorizer)
    assert other.get_params() == vectorizer.get_params()
    vectorizer.close()
    np.testing.assert_array_equal(other.transform(TEXTS), expected(TEXTS)[:, :4])
    other.close()


def test_a_client_of_the_callers_is_shared_and_stays_open(server):
    with Client(server.http_url) as client:
        vectorizer = BertronVectorizer(client=client)
        other = clone(vectorizer)
        assert other.client is client
        np.testing.assert_array_equal(other.fit_transform(TEXTS), expected(TEXTS))
        other.close()
        vectorizer.close()
        np.testing.assert_array_equal(vectorizer.transform(TEXTS), expected(TEXTS))
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(vectorizer)


def test_errors_are_the_clients(vectorizer):
    with pytest.raises(InvalidInputError) as caught:
        vectorizer.fit_transform([*TEXTS, None])
    assert caught.value.index == 20
    with pytest.raises(TypeError, match="a single str"):
        vectorizer.fit_transform("a text")
    table = pandas.DataFrame({"id": [1], "text": ["a"]})
    with pytest.raises(TypeError, match="with the columns id, text; give one of them"):
        vectorizer.fit_transform(table)


def test_a_table_comes_out_where_one_is_wanted(vectorizer):
    vectorizer.set_output(transform="pandas")
    series = pandas.Series(TEXTS, index=range(100, 120))
    table = vectorizer.fit_transform(series)
    assert list(table.columns) == list(vectorizer.get_feature_names_out())
    assert list(table.index) == list(series.index)
    np.testing.assert_array_equal(table.to_numpy(), expected(TEXTS))


def test_a_column_of_a_table(server, vectorizer):
    table = pandas.DataFrame({"text": TEXTS, "number": np.arange(20.0)})
    columns = ColumnTransformer([("text", vectorizer, "text"), ("rest", "passthrough", ["number"])])
    rows = columns.fit_transform(table)
    np.testing.assert_array_equal(rows[:, :-1].astype(np.float32), expected(TEXTS))
    assert columns.get_feature_names_out()[0] == "text__bertronvectorizer0"


def test_a_pipeline_learns(server, protocol):
    # Each text several times, in several folds: texts that a fold has not seen could not be known.
    texts = [f"{label} text {number % 3}" for number in range(15) for label in ("good", "bad")]
    labels = [text.split()[0] for text in texts]
    pipeline = make_pipeline(BertronVectorizer(server.url(protocol)), LogisticRegression(C=100))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    assert list(cross_val_score(pipeline, texts, labels, cv=folds)) == [1.0] * 5
    pipeline.fit(texts, labels)
    assert list(pipeline.predict(["bad text 1", "good text 2"])) == ["bad", "good"]
    search = GridSearchCV(pipeline, {"bertronvectorizer__dimensions": [1, 16]}, cv=folds)
    assert search.fit(texts, labels).best_params_ == {"bertronvectorizer__dimensions": 16}
