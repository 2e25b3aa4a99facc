"""Asks ClickHouse itself: questions.py FOLDER LINES QUESTION [NAME=VALUE...]; LINES has host, tab, line; prints JSON lines."""

import sys

from chdb import session

folder, lines, question, *given = sys.argv[1:]
engine = session.Session()


def ask(text, form="JSONEachRow"):
    return engine.query(text, form)


ask("CREATE DATABASE fleet")
ask("USE fleet")
with open(f"{folder}/table.sql") as text:
    for statement in text.read().split(";\n"):
        if statement.strip():
            ask(statement)
# What ships lines may do so twice, in parts of their own.
for begin in (0, 1_000_000):
    ask(
        f"INSERT INTO imds_lines (host, position, line) SELECT splitByChar('\\t', it)[1], {begin} + number, splitByChar('\\t', it)[2]"
        f" FROM (SELECT it, rowNumberInAllBlocks() AS number FROM file('{lines}', 'LineAsString', 'it String'))"
    )
for one in given:
    name, value = one.split("=", 1)
    ask(f"SET param_{name} = '{value}'")
with open(f"{folder}/{question}.sql") as text:
    print(ask(text.read()), end="")
