"""No password, token, key or signature is in what is redacted, whatever form of address or string it is in."""

import time

import pytest

from transloom.pipeline.errors import UserError
from transloom.pipeline.secrets import redacted, secrets_in

ODBC = "mssql+pyodbc:///?odbc_connect=DRIVER%3D%7BODBC+Driver+17%7D%3BSERVER%3Dh%3BUID%3Du%3B"

SECRETS = [
    "http://user:canary@host:5000/x",
    "postgresql://user:can/canary@ry@host/db",
    "mysql+pymysql://u@host/db?password=canary",
    "s3://canary:canary@bucket/key",
    "simplecache::https://u:canary@host/f",
    "https://host/?u=https%3A%2F%2Fu%3Acanary%40host%2F&x=1",
    f"{ODBC}PWD%3Dcanary",
    f"{ODBC}PWD%3Dcanary%3BEncrypt%3Dyes",
    f"{ODBC}PWD%3D%7Bcan%3Bcanary%7D%3BEncrypt%3Dyes",
    "mssql+pyodbc:///?odbc_connect=PWD%253Dcanary%253BUID%253Du",
    "mssql+pyodbc:///?odbc_connect=DRIVER={x};PWD=canary",
    "DRIVER={x};SERVER=h;UID=u;PWD=canary;Encrypt=yes",
    "Server=h;Password = my canary word;x=y",
    "Server=h;Pwd={can;canary}};canary};Trust=1",
    "Server=h;Pwd={can}canary;Trust=1",
    'Server=h;Password="a;canary";x=1',
    "PWD=canary;DRIVER=x",
    "jdbc:sqlserver://h:1;user=u;password=canary;x=1",
    "host=h password=canary dbname=x",
    "https://h/f?sig=canary",
    "https://h/f?sv=1&sig=can%2Fcanary%3D&x=1",
    "https://h/f?token={a}canary",
    "s3://b/k?X-Amz-Signature=canary&X-Amz-Credential=canary%2F2026&X-Amz-Security-Token=canary",
    "https://h/f?AWSAccessKeyId=canary&Signature=canary&Expires=1",
    "https://h/f?X-Goog-Credential=canary&X-Goog-Signature=canary",
    "https://h/f?api_key=canary",
    "https://h/f?apikey=canary#x",
    "https://h/?code=1&client_secret=canary",
    "https://h/f;jsessionid=1;token=canary",
    "DefaultEndpointsProtocol=https;AccountName=x;AccountKey=canary==;EndpointSuffix=c",
    "Endpoint=sb://x/;SharedAccessKeyName=n;SharedAccessKey=canary=",
    "transloom run corpus.data_files.train=https://h/x?token=canary",
    "http://user:p@canary@host/x",
    "Authorization: Bearer canary",
    '{"token": "a\\"canary"}',
    '{\\"token\\": \\"canary\\"}',
    '{"password": "canary"}',
    "{'secret_key': 'a canary'}",
    "password='a canary'",
    "hf_canary" + "a" * 30,
    "github_pat_canary" + "a" * 30,
]


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_is_taken_out_of_a_text_and_of_what_is_nested(text: str) -> None:
    shown = redacted(text)
    assert "canary" not in shown and "***" in shown
    assert redacted(shown) == shown
    assert redacted({"a": [{"b": (text,)}], "c": text}) == {"a": [{"b": [shown]}], "c": shown}
    assert str(UserError(f"corpus.data_files: {text}")) == f"corpus.data_files: {shown}"


@pytest.mark.parametrize(
    "text",
    [
        "http://host:5000/a",
        "http://host:5000/data@2/train.de",
        '{"server": "http://host:5000","by":"me@example.org"}',
        "/data/corpus@2:new/train?.de",
        "password: hello",
        "tokens=4096 micro_tokens=1024 max_tokens=5",
        "sqlite:////data/mlflow.db",
        "write to me@example.org",
        "settings are key=value, and --help lists them",
        "batch.tokens=500 evaluate.tokenize=char tokenizer.vocab_size=300",
        "https://host/f?page=2&lang=en",
        "hf://datasets/x/y.parquet",
        "set MLFLOW_TRACKING_PASSWORD in the environment",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


def test_a_value_whose_key_names_a_secret_is_one() -> None:
    settings = {
        "storage_options": {"aws_secret_access_key": "canary", "accountKey": "canary"},
        "key": "ab",
        "tokens": 3,
    }
    assert redacted(settings) == settings | {
        "storage_options": {"aws_secret_access_key": "***", "accountKey": "***"},
    }


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "unit", ["://", "://a:", "%3A%2F%2F", "a.", "a@", ";a ", "; ", "&a-", "pass={", "pass: '", "\\"]
)
def test_a_hostile_text_takes_no_time(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    started_at = time.process_time()
    redacted(text)
    redacted(f"://a:{text}@")
    assert time.process_time() - started_at < 10


def test_a_key_may_be_any() -> None:
    assert redacted({("a", 1): "x?sig=canary", 2: "y"}) == {("a", 1): "x?sig=***", 2: "y"}


def test_the_settings_with_a_secret_are_named() -> None:
    settings = {"corpus": {"data_files": {"train": "x" * 600 + "?sig=canary"}, "split": ("a", "b")}, "seed": 1}
    assert secrets_in(settings) == {"corpus.data_files.train": "x" * 600 + "?sig=***"}
