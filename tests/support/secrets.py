"""
Two hundred secrets, and ordinary lines that hold none.

PUBLISHED are examples and test data of published detectors, all of them made up or void long since:
- detect-secrets (Yelp, Apache-2.0), tests/plugins/: aws_key, basic_auth, email_address, github_token, jwt, private_key,
  slack and stripe_key tests
- Presidio (Microsoft, MIT), presidio-analyzer/tests/: iban, credit_card and email recognizer tests
- gitleaks (MIT), cmd/generate/config/rules/: aws, curl, gcp, jwt, privatekey and slack, their validation samples
- Nosey Parker (Praetorian, Apache-2.0), crates/noseyparker/data/default/builtin/rules/: aws, github, google, http, jwt,
  mongo, postgres and stripe, their examples
MADE are drawn from a fixed seed after the same formats.

A secret is (text as it is logged, the part of it that must be found nowhere).
"""

from __future__ import annotations

import random
import string
import uuid


def whole(*texts):
    return [(text, text) for text in texts]


def bearing(*texts):
    """A header: its last word is the secret."""
    return [(text, text.split()[-1]) for text in texts]


DETECT_SECRETS = [
    *whole(
        "AKIAZZZZZZZZZZZZZZZZ",
        "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",
        "sk_live_ReTllpYQYfIZu2Jnf2lAPFjD", "rk_live_5TcWfjKmJgpql9hjpRnwRXbT",
        "xoxp-523423-234243-234233-e039d02840a0b9379c", "xoxo-523423-234243-234233-e039d02840a0b9379c",
        "xoxs-523423-234243-234233-e039d02840a0b9379c", "xoxa-511111111-31111111111-3111111111111-e039d02840a0b9379c",
        "xoxa-2-511111111-31111111111-3111111111111-e039d02840a0b9379c", "xoxr-523423-234243-234233-e039d02840a0b9379c",
        "xoxb-34532454-e039d02840a0b9379c",
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyfQ.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c",
        "eyJ0eXAiOiJKV1QiLA0KImFsZyI6IkhTMjU2In0.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyfQ",
        "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJuYW1lIjoiSm9lIiwKInN0YXR1cyI6ImVtcGxveWVlIgp9",
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IsWww6HFkcOtIMOWxZHDqcOoIiwiaWF0IjoxNTE2MjM5MDIyfQ.k5HibI_uLn_RTuPcaCNkaVaQH2y5q6GvJg8GPpGMRwQ",
        "user@example.com", "user.name@example.com", "user_name@example.com", "user-name@example.com",
        "user+name@example.com", "user@ex_ample.com", "user@example-.com", "user.name+category@example.com",
        "user@gmail.com", "user@yahoo.com", "user@hotmail.com",
    ),
    ("https://username:password@yelp.com", "username:password@"),
    ("https://hooks.slack.com/services/Txxxxxxxx/Bxxxxxxxx/xxxxxxxxxxxxxxxxxxxxxxxx", "Txxxxxxxx/Bxxxxxxxx"),
    ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI/K7MDENG"),
    (
        "-----BEGIN RSA PRIVATE KEY-----\nc3VwZXIgZHVwZXIgc2VjcmV0IHBhc3N3b3JkLCBzdXBlciBkdXBlciBzZ\nWNyZXQgcGFzc3dvcmQhMTIzNCMkJQpzdXBlciBkdXBlciBzZWNyZXQgcGFzc3dvcmQsIHN1cGVyIGR1cGVyIHNlY3JldCBwYXNzd29yZCExMjM0IyQlCgo=\n-----END RSA PRIVATE KEY-----",
        "WNyZXQgcGFzc3dvcmQhMTIzNCMkJQ",
    ),
    (
        "-----BEGIN PRIVATE KEY-----\nc3VwZXIgZHVwZXIgc2VjcmV0IHBhc3N3b3JkLCBzdXBlciBkdXBlciBzZWNyZXQgcGFzc3dvcmQhMTIzNCMkJQpzdXBlciBkdXBlciBzZWNyZXQgcGFzc3dvcmQsIHN1cGVyIGR1cGVyIHNlY3JldCBwYXNzd29yZCExMjM0IyQlCgo=\n-----END PRIVATE KEY-----",
        "c3VwZXIgZHVwZXIgc2VjcmV0",
    ),
    ("PuTTY-User-Key-File-2\nsecret key", "secret key"),
]  # fmt: skip

PRESIDIO = whole(
    "AL47212110090000000235698741", "AL47 2121 1009 0000 0002 3569 8741", "AD1200012030200359100100", "AT611904300234573201",
    "AZ21 NABZ 0000 0000 1370 1000 1944", "BH67BMAG00001299123456", "BY13NBRB3600900000002Z00AB00", "BE71 0961 2345 6769",
    "BA391290079401028494", "BR97 0036 0305 0000 1000 9795 493P 1", "BG80BNBG96611020345678", "CR05 0152 0200 1026 2840 66",
    "HR1210010051863000160", "CY17002001280000001200527600", "CZ65 0800 0000 1920 0014 5399", "DK5000400440116243",
    "FR14 2004 1010 0505 0001 3M02 606", "DE89370400440532013000", "DE89 3704 0044 0532 0130 00", "GI75NWBK000000007099453",
    "IE29AIBK93115212345678", "IT60X0542811101000000123456", "MT84 MALT 0110 0001 2345 MTLC AST0 01S",
    "NL91ABNA0417164300", "NO93 8601 1117 947", "PL61109010140000071219812874", "ES9121000418450200051332",
    "SE45 5000 0000 0583 9825 7466", "CH9300762011623852957", "GB29 NWBK 6016 1331 9268 19",
    "4012888888881881", "4012-8888-8888-1881", "4012 8888 8888 1881", "371449635398431", "5555555555554444",
    "5019717010103742", "30569309025904", "6011000400000000", "3528000700000000", "6759649826438453", "4111111111111111",
    "4917300800000000", "4484070000000000", "info@presidio.site",
)  # fmt: skip

GITLEAKS = [
    *whole(
        "AKIALALEMEL33243OLIB",
        "xoxp-41684372915-1320496754-45609968301-e708ba56e1517a99f6b5fb07349476ef",
        "xoxb-263594206564-2343594206574-FGqddMF8t08v8N7Oq4i57vs1MBS",
        "xapp-1-A052FGTS2DL-5171572773297-610b6a11f4b7eb819e87b767d80e6575a3634791acb9a9ead051da879eb5b55e",
        "xoxs-416843729158-132049654-5609968301-e708ba56e1", "xoxb-50014434-slacktokenx29U9X1bQ",
        "xoxe.xoxp-1-Mi0yLTM0MTQwNDE0MDE3Ni0zNjU5NDY0Njg4MTctNTE4MjA3NTQ5NjA4MC01NDEyOTYyODY5NzUxLThhMTBjZmI1ZWIzMGIwNTg0ZDdmMDI5Y2UxNzVlZWVhYzU2ZWQyZTZiODNjNDZiMGUxMzRlNmNjNDEwYmQxMjQ",
        "AIzaSyNHxIf32IQ1a1yjl3ZJIqKZqzLAK1XhDk-", "AIzaSyabcdefghijklmnopqrstuvwxyz1234567",
        "AIzaSyAnLA7NfeLquW1tJFpx_eQCxoX-oo6YyIs", "AIzaSyCkEhVjf3pduRDt6d1yKOMitrUEke8agEM",
        "AIzaSyDMAScliyLx7F0NPDEJi1QmyCgHIAODrlU", "AIzaSyD3asb-2pEZVqMkmL6M9N6nHZRR_znhrh0",
    ),
    ("eyJhbGciOieeeiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwic3ViZSI6IjEyMzQ1Njc4OTAi.a_5icKBDo-8EjUlrfvz2k2k-FYaindQ0DEYNrlsnRG0==", "a_5icKBDo-8EjUlrfvz2k2k"),
    *bearing(
        "Authorization: Basic YnJvd3Nlcjo=", "Authorization: Bearer cfcabd11c7ed9a41b1a3e063c32d5114",
        "Authorization: Basic MzUzYjMwMmM0NDU3NGY1NjUwNDU2ODdlNTM0ZTdkNmE6Mjg2OTI0Njk3ZTYxNWE2NzJhNjQ2YTQ5MzU0NTY0NmM=",
        "Authorization: Bearer _FXNljbSRYMWx3TWrd7lgKhLtVZX6iskC8Wcbb4b",
        "Authorization: Api-Token 22cb987851bc5659l29114c62e60c79abd0d2c08",
        "Authorization: Token 22cb987851bc5659229114c62e60c79abd0d2c08",
    ),
    (
        "-----BEGIN RSA PRIVATE KEY-----\nMIIBOgIBAAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf9Cnzj4p4WGeKLs1Pt8QuKUpRKfFLfRYC9AIKjbJTWit+CqvjWYzvQwECAwEAAQJAIJLixBy2qpFoS4DSmoEmo3qGy0t6z09AIJtH+5OeRV1be\n-----END RSA PRIVATE KEY-----\n",
        "MIIBOgIBAAJBAKj34GkxFhD90vcNLY",
    ),
]  # fmt: skip

NOSEY_PARKER = [
    *whole(
        "A3T0ABCDEFGHIJKLMNOP", "AKIADEADBEEFDEADBEEF", "ghp_XIxB7KMNdAr3zqWtQqhE94qglHqOzn1D1stg",
        "ghu_16C7e42F292c69C2E7C10c838347Ae178B4a", "ghs_RguXIkihJjwHAP6eXEYxaPNvywurTr5IOAbg",
        "ghr_1B4a2e77838347a7E420ce178F2E7c6912E169246c3CE1ccbF66C46812d16D5B1A9Dc86A1498",
        "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",
        "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", "ya29.Ci_UA7aEsvT6-oVI8f96kvB6i8oO13WgdZUviLaCVtpEPYZqhQcQycR-u2X9xtmYGA",
        "AIzaSyBnAoO3VNVUco4MXf4enYCVBg6ZnpY49N-", "sk_live_dhhfUUyfrAace5dBAZ10JrAD",
        "sk_live_qdyFazIVmace52bThiOzbEVT", "sk_test_nxOdTTuEace5Ajbh3svpG32m",
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJsb2dnZWRJbkFzIjoiYWRtaW4iLCJpYXQiOjE0MjI3Nzk2Mzh9.gzSraSYS8EXBxLN_oWnFSRgCzcmEmMjLiuyu5CSpyHI",
    ),
    *bearing("Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", "Authorization: Bearer mF_9.B5f-4.1JqM"),
    ("postgresql://user:secret@localhost/database", "user:secret@localhost"),
    ("mongodb://myDatabaseUser:D1fficult@localhost/database", "D1fficult@"),
    ("mongodb+srv://myDatabaseUser:D1fficultP%40ssw0rd@cluster0.example.mongodb.net/?retryWrites=true&w=majority", "D1fficultP%40ssw0rd"),
]  # fmt: skip

PUBLISHED = [*DETECT_SECRETS, *GITLEAKS, *NOSEY_PARKER, *PRESIDIO[16:]]


def _made():
    draw = random.Random(17)
    letters, digits = string.ascii_letters + string.digits, string.digits

    def pick(count, alphabet=letters):
        return "".join(draw.choices(alphabet, k=count))

    for n in range(10):
        token = pick(draw.randint(20, 900), letters + "._~+/-") + "7aB"
        yield f"{draw.choice(['Bearer', 'bearer', 'BEARER', 'Basic'])} {token}", token[8:]
        text = (
            "eyJ"
            + pick(30, letters + "_-")
            + ".eyJ"
            + pick(draw.randint(40, 3000), letters + "_-")
            + "."
            + pick(43, letters + "_-")
        )
        yield text, text[-60:]
        yield (
            (
                text
                := f"{pick(8).lower()}.{pick(5)}@{pick(7).lower()}.{draw.choice(['example.org', 'co.uk', 'museum', 'de'])}"
            ),
            text,
        )
        number = draw.choice(["4", "51", "2221", "34", "6011", "3530", "36"])
        number += pick((15 if number == "34" else 14 if number == "36" else 16) - len(number) - 1, digits)
        number += next(
            d
            for d in digits
            if sum(sum(divmod(int(c) * (1 + i % 2), 10)) for i, c in enumerate(reversed(number + d))) % 10 == 0
        )
        shown = " ".join(number[i : i + 4] for i in range(0, 16, 4)) if n % 2 and len(number) == 16 else number
        yield shown, shown
        account = pick(18, digits)
        check = 98 - int(f"{account}131400") % 97  # D is 13, E is 14
        yield (text := f"DE{check:02}{account}"), text
    for n in range(8):
        kind = draw.choice(["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "])
        lines = [pick(64, letters + "+/") for _ in range(draw.randint(3, 50))]
        between = "\\n" if n % 2 else "\n"  # as a repr, or JSON, shows it
        yield between.join([f"-----BEGIN {kind}PRIVATE KEY-----", *lines, f"-----END {kind}PRIVATE KEY-----"]), lines[1]
    for n in range(12):
        secret = "S3" + pick(draw.randint(8, 300), letters + "!$*+,-.;=_~%")
        yield (
            draw.choice(
                [f"amqp://shop:{secret}@mq:5672/v", f"redis://:{secret}@cache/0", f"https://u.v:{secret}@h/x?y=1"]
            ),
            secret,
        )
    for n in range(6):
        yield (text := draw.choice(["AKIA", "ASIA"]) + pick(16, string.ascii_uppercase + "234567")), text
        yield (text := f"gh{draw.choice('pousr')}_" + pick(36)), text
        yield (text := f"xoxb-{pick(12, digits)}-{pick(13, digits)}-{pick(24)}"), text
        yield (text := f"{draw.choice('rs')}k_{draw.choice(['live', 'test'])}_" + pick(draw.choice([24, 99]))), text
        yield (text := "AIza" + pick(35, letters + "_-")), text


MADE = list(_made())
SECRETS = [*PUBLISHED, *MADE]

# The columns of the typed tables that are shipped, and of what they replace.
TYPED_FIELDS = [
    "session_id",
    "user_id",
    "activity_type",
    "activity_status",
    "document_id",
    "message_content",
    "response_content",
    "token_count",
    "retrieval_skipped",
    "similarity_score",
    "processing_time_ms",
    "llm_call_duration_ms",
    "retrieval_duration_ms",
    "error_message",
    "error_type",
    "user_agent",
    "ip_address",
    "log_type",
    "job_id",
    "user_did",
    "slice_uri",
    "level",
    "message",
    "metadata",
    "method",
    "route",
    "path",
    "status",
    "duration_ms",
    "client_ip",
    "request_size",
    "response_size",
    "request_body",
    "error",
    "channel",
    "recipient_email",
    "recipient_phone",
    "recipient_name",
    "template_id",
    "template_name",
    "subject",
    "attempts",
    "priority",
    "message_id",
    "admin_id",
    "action",
    "resource_type",
    "resource_id",
    "changes",
    "created_at",
    "updated_at",
    "id",
    "timestamp",
    "service",
    "module",
    "operation",
    "component",
    "trace_id",
    "span_id",
    "correlation_id",
    "organization_id",
    "error_details",
    "endpoint",
    "response_status",
    "response_time_ms",
]


def ordinary(count):
    """Lines as programs write them, drawn from a fixed seed; nothing in them is a secret."""
    draw = random.Random(4711)

    def digits(least, most):
        return draw.randint(10 ** (least - 1), 10**most - 1)

    def hexadecimal(count):
        return f"{draw.getrandbits(count * 4):0{count}x}"

    def some_uuid():
        return uuid.UUID(int=draw.getrandbits(128), version=4)

    shapes = [
        lambda: f"order {digits(3, 11)} paid in {draw.random() * 9:.3f} s",
        lambda: f"order no. {draw.randint(2020, 2030)}-{digits(6, 8)} shipped, parcel {digits(12, 12)}",
        lambda: (
            f"request {some_uuid()} from {draw.randint(1, 255)}.{draw.randint(0, 255)}.0.{draw.randint(1, 254)}:{draw.randint(1024, 65535)} done"
        ),
        lambda: (
            f'10.0.0.{draw.randint(1, 254)} - - [27/Nov/2026:05:{draw.randint(10, 59)}:11 +0000] "GET /v1/items?page={draw.randint(1, 99)}&page_token={hexadecimal(12)} HTTP/1.1" 200 {digits(2, 6)}'
        ),
        lambda: (
            f"2026-11-{draw.randint(10, 30)}T0{draw.randint(0, 9)}:11:{draw.randint(10, 59)}.{digits(6, 6)}Z INFO shop.orders: ready"
        ),
        lambda: (
            f"timestamp={draw.randint(1_700_000_000_000, 1_800_000_000_000)} micros={draw.randint(17 * 10**14, 18 * 10**14)} nanos={draw.randint(17 * 10**17, 18 * 10**17)}"
        ),
        lambda: f"commit {hexadecimal(40)} built as image sha256:{hexadecimal(64)}",
        lambda: f"trace_id={hexadecimal(32)} span_id={hexadecimal(16)} sampled=1",
        lambda: f"traceparent: 00-{hexadecimal(32)}-{hexadecimal(16)}-01",
        lambda: (
            f"loaded shop {draw.randint(0, 9)}.{draw.randint(0, 30)}.{draw.randint(0, 9)}rc1 with numpy=={draw.randint(1, 2)}.26.{draw.randint(0, 9)}, react@18.2.{draw.randint(0, 9)}"
        ),
        lambda: (
            f'  File "/srv/shop/orders.py", line {draw.randint(1, 900)}, in pay\n    raise ValueError(f"no order {{n}}")\nValueError: no order {digits(3, 8)}'
        ),
        lambda: (
            f"\tat com.shop.Orders.pay(Orders.java:{draw.randint(1, 900)})\n\tat java.base/java.lang.Thread.run(Thread.java:840)"
        ),
        lambda: (
            f"GET https://api.example.com:8443/v2/orders/{some_uuid()}?fields=id,total&limit={draw.randint(1, 99)} -> 404"
        ),
        lambda: f"connected to postgresql://db{draw.randint(1, 9)}:5432/shop as shop, server 15.{draw.randint(0, 9)}",
        lambda: f"score={draw.random()!r} loss={draw.random() * 10!r} similarity {draw.random():.16f}",
        lambda: (
            f"{{'status': 'success', 'token_count': {digits(2, 4)}, 'user_id': 'u-{digits(3, 6)}', 'object': '{hexadecimal(24)}'}}"
        ),
        lambda: (
            f"celery@worker{draw.randint(1, 9)} ready, task shop.tasks.mail[{some_uuid()}] succeeded in {draw.random():.4f}s"
        ),
        lambda: (
            f"Basic authentication failed for user {digits(2, 4)}; bearer token is missing, Authorization: required"
        ),
        lambda: f'cache key user:{digits(3, 7)}:cart hit, etag W/"{hexadecimal(8)}-{hexadecimal(4)}"',
        lambda: (
            f"disk /dev/sda{draw.randint(1, 9)} 0x{hexadecimal(16)} at {draw.randint(10, 99)}% of {digits(10, 13)} bytes"
        ),
        lambda: (
            f"password changed for u-{digits(3, 6)}; token_count is {digits(2, 5)}, secret santa is {draw.choice(['on', 'off'])}"
        ),
        lambda: f"icon@2x.png and getty@tty{draw.randint(1, 6)}.service started, decorator @app.route('/x')",
        lambda: (
            f"invoice INV{digits(8, 8)} of GB{digits(9, 9)} VAT, EAN 400{digits(10, 10)}, ISBN 978-3-16-{digits(6, 6)}-0"
        ),
        lambda: (
            f"mac 0a:1b:{hexadecimal(2)}:{hexadecimal(2)}:4e:5f, ip6 2001:db8::{hexadecimal(4)}:{hexadecimal(4)}, port {draw.randint(1024, 65535)}"
        ),
        lambda: f"lat {draw.uniform(-90, 90):.7f}, lon {draw.uniform(-180, 180):.7f}, phone ext. {digits(3, 4)}",
    ]
    return [shapes[n % len(shapes)]() for n in range(count)]


class Shown(Exception):
    """An error of the program's own, whose text holds a secret."""


def _caught(text, cause):
    try:
        raise Shown(text) from cause
    except Shown as error:
        return (Shown, error, error.__traceback__)


# Where a program may log a text: text -> (message, arguments, extra=, exc_info=, what is bound meanwhile).
PLACES = {
    "message": lambda text: (f"got {text} here", (), {}, None, {}),
    "argument": lambda text: ("got %s here", (text,), {}, None, {}),
    "extra": lambda text: ("got it", (), {"note": text}, None, {}),
    "nested key": lambda text: ("got it", (), {"request": {"seen": [{text: 1}]}}, None, {}),
    "exception": lambda text: ("failed", (), {}, _caught(text, None), {}),
    "chained exception": lambda text: ("failed", (), {}, _caught("outer", ValueError(f"inner {text}")), {}),
    "bound": lambda text: ("got it", (), {}, None, {"tenant": text, "correlation_id": text}),
    "dict message": lambda text: ({"event": f"got {text}", "more": (text,)}, (), {}, None, {}),
    "URL": lambda text: (f"GET https://api.example.com/cb?a=1&next={text}", (), {}, None, {}),
}
