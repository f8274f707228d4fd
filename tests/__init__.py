"""Tests of cnnext; `tests.reference` states what is right, `tests.cases` which problems are tried."""
