"""Whatever stands in a label of ours, it is refused and the worker goes on."""

from __future__ import annotations

import json

import pytest

from tests.attacks.forging import (
    PRINCIPAL,
    SIGNATURE,
    decode,
    encode,
    principal_of,
    read,
    relabelled,
    signature_of,
    with_principal,
    write,
)
from tests.integration.inmemory.harness import Process

NOT_TOKENS: dict[str, object] = {
    "empty": "",
    "a number": 7,
    "zero": 0,
    "true": True,
    "false": False,
    "a fraction": 1.5,
    "a list": ["a", "b", "c"],
    "an empty list": [],
    "a mapping": {"protected": "e30", "signature": ""},
    "an unhashable nest": [{"a": [{}]}],
    "one segment": "e30",
    "two segments": "e30.e30",
    "four segments": "e30...",
    "only dots": "..",
    "many dots": "." * 8000,
    "not base64": "!!!..!!!",
    "the other alphabet": "++//..++//",
    "white space": " e30 .. e30 ",
    "newlines": "e30\n..\ne30",
    "a null byte": "e30..\x00",
    "not ASCII": "\u00e9\u4e2d..\u00e9",
    "a full-width dot": "e30\uff0e\uff0ee30",
    "one character": "A..A",
    "not JSON": encode(b"not json") + "..AAAA",
    "not UTF-8": encode(b"\xff\xfe") + "..AAAA",
    "an array header": encode(b"[]") + "..AAAA",
    "a string header": encode(b'"alg"') + "..AAAA",
    "a null header": encode(b"null") + "..AAAA",
    "an empty header": encode(b"{}") + "..AAAA",
    "a deep array header": encode(b"[" * 5000) + "..AAAA",
    "a deep object header": encode(b'{"alg":' * 800) + "..AAAA",
    "a deep member": encode(b'{"alg":' + b"[" * 2000 + b"]" * 2000 + b"}") + "..AAAA",
    "a header of many names": encode(b"{" + b",".join(b'"%d":1' % i for i in range(500)) + b"}") + "..AAAA",
    "a huge number": encode(b'{"iat":1' + b"0" * 5000 + b"}") + "..AAAA",
}

each_text = pytest.mark.parametrize("text", NOT_TOKENS.values(), ids=NOT_TOKENS)


@each_text
async def test_what_is_no_token_is_no_signature(process: Process, text: object) -> None:
    await process.refuses(write(relabelled(read(await process.genuine()), SIGNATURE, text)), "malformed")


@each_text
async def test_what_is_no_token_is_no_principal(process: Process, text: object) -> None:
    message = read(await process.genuine())
    await process.refuses(write(relabelled(message, PRINCIPAL, text)), "bad_signature")


@each_text
async def test_what_is_no_token_is_no_principal_even_from_a_holder_of_the_message_key(
    process: Process, text: object
) -> None:
    await process.refuses(write(with_principal(read(await process.genuine()), text)), "malformed")


@pytest.mark.parametrize("label", [SIGNATURE, PRINCIPAL])
async def test_null_is_as_good_as_no_label(process: Process, label: str) -> None:
    await process.refuses(write(relabelled(read(await process.genuine()), label, None)), "unsigned")


@pytest.mark.parametrize("size", [8193, 1_000_000])
async def test_an_oversized_signature_is_refused(process: Process, size: int) -> None:
    await process.refuses(write(relabelled(read(await process.genuine()), SIGNATURE, "A" * size)), "oversized")


@pytest.mark.parametrize("size", [8193, 1_000_000])
async def test_an_oversized_principal_is_refused(process: Process, size: int) -> None:
    message = read(await process.genuine())
    await process.refuses(write(with_principal(message, "A" * size)), "oversized")


def _other_spellings(segment: str) -> dict[str, str]:
    """The same bytes as this segment, written in other ways."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    spellings = {
        "padding": segment + "=" * (-len(segment) % 4 or 4),
        "trailing newline": segment + "\n",
        "inner space": segment[:4] + " " + segment[4:],
        "standard alphabet": segment.replace("-", "+").replace("_", "/"),
    }
    if len(segment) % 4:
        unused_bits = {2: 16, 3: 4}[len(segment) % 4]
        last = alphabet.index(segment[-1])
        spellings["unused bits"] = segment[:-1] + alphabet[last - last % unused_bits + (last + 1) % unused_bits]
    return {name: spelling for name, spelling in spellings.items() if spelling != segment}


async def test_every_other_spelling_of_a_genuine_signature_is_refused(process: Process) -> None:
    message = read(await process.genuine())
    protected, _, signature = signature_of(message).split(".")
    spellings = _other_spellings(signature)
    assert "unused bits" in spellings
    for spelling in spellings.values():
        await process.refuses(write(relabelled(message, SIGNATURE, f"{protected}..{spelling}")), "malformed")
        process.broker.result_backend.results.clear()


@pytest.mark.parametrize("segment", [0, 1, 2])
async def test_every_other_spelling_of_a_genuine_principal_is_refused(process: Process, segment: int) -> None:
    message = read(await process.genuine())
    parts = principal_of(message).split(".")
    for spelling in _other_spellings(parts[segment]).values():
        token = ".".join([*parts[:segment], spelling, *parts[segment + 1 :]])
        outcome = await process.broker.deliver(write(with_principal(message, token)))
        assert process.ran == []
        assert outcome.acks == 1
        assert outcome.reason in ("malformed", "bad_signature")
        process.broker.result_backend.results.clear()


async def test_a_header_that_names_a_parameter_twice_is_refused(process: Process) -> None:
    message = read(await process.genuine())
    protected, _, signature = signature_of(message).split(".")
    header = b'{"alg":"none",' + json.dumps(decode(protected)).encode()[1:]
    forged = relabelled(message, SIGNATURE, f"{encode(header)}..{signature}")
    await process.refuses(write(forged), "bad_signature")
