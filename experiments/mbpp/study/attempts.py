"""What to do after an attempt at an endpoint has failed.

Statuses 408, 429 and 5xx are worth another attempt, and so is a connection that broke, an answer
that came too late or one that is not what the API promises. Google's endpoints say how long to wait
in the body of a 429, as google.rpc.RetryInfo (googleapis, google/rpc/error_details.proto); others
in the header Retry-After.
"""
import dataclasses
import json
import random
import re

import openai

TRY_AGAIN, GIVE_UP, FATAL = "try again", "give up", "fatal"
WORTH_ANOTHER = {408, 429, *range(500, 600)}
HOPELESS = {401, 403, 404}  # the key, or the model: no request would fare better
LONGEST_MESSAGE = 300


class Malformed(Exception):
    """An answer with status 200 that is not a completion."""


class NoUsage(Exception):
    """A completion that does not say how many tokens it has."""


@dataclasses.dataclass(frozen=True)
class Policy:
    attempts: int = 6
    timeout_s: float = 600.0    # of one attempt
    first_wait_s: float = 1.0   # doubled each time, where the endpoint says nothing
    longest_wait_s: float = 120.0


@dataclasses.dataclass(frozen=True)
class Failure:
    kind: str      # status, "timeout", "connection", "malformed", "no usage"
    message: str
    action: str
    asked_wait_s: float = None  # what the endpoint asked for

    def wait_s(self, policy, attempt):
        """Before the attempt after the given one (from 1)."""
        if self.asked_wait_s is not None:
            return self.asked_wait_s
        longest = min(policy.longest_wait_s, policy.first_wait_s * 2 ** (attempt - 1))
        return longest * random.uniform(0.5, 1.0)  # not all at once


def details_of(body):
    """The details of Google's errors, which come as an object or as a list of one."""
    for entry in body if isinstance(body, list) else [body]:
        if isinstance(entry, dict):
            error = entry.get("error", entry)
            details = error.get("details") if isinstance(error, dict) else None
            yield from (item for item in details or [] if isinstance(item, dict))


def retry_info_s(body):
    for item in details_of(body):
        delay = str(item.get("retryDelay", ""))
        if str(item.get("@type", "")).endswith("google.rpc.RetryInfo") and \
                re.fullmatch(r"\d{1,9}(\.\d{1,9})?s", delay):
            return float(delay[:-1])
    return None


def is_daily_quota(body):
    return any("PerDay" in str(violation.get("quotaId", ""))
               for item in details_of(body) if str(item.get("@type", "")).endswith("QuotaFailure")
               for violation in item.get("violations", []) if isinstance(violation, dict))


def retry_after_s(headers):
    text = headers.get("retry-after", "")
    return float(text) if re.fullmatch(r"\d{1,9}(\.\d{1,3})?", text) else None


def body_of(response):
    """What the endpoint sent, whole: the client's exceptions keep only the part it knows."""
    try:
        return response.json()
    except ValueError:
        return None


def of_status(error, policy):
    body = body_of(error.response)
    message = json.dumps(body) if body is not None else error.response.text
    kind, status = str(error.status_code), error.status_code
    if status in HOPELESS or is_daily_quota(body):
        return Failure(kind, message, FATAL)
    if status not in WORTH_ANOTHER:
        return Failure(kind, message, GIVE_UP)
    asked = retry_info_s(body)
    asked = retry_after_s(error.response.headers) if asked is None else asked
    too_long = asked is not None and asked > policy.longest_wait_s
    return Failure(kind, message, GIVE_UP if too_long else TRY_AGAIN, asked)


def failure_of(error, policy):
    """Of an exception of the openai client, or one of those above."""
    if isinstance(error, openai.APIStatusError):
        return of_status(error, policy)
    if isinstance(error, NoUsage):
        return Failure("no usage", str(error), GIVE_UP)
    if isinstance(error, openai.APITimeoutError):
        return Failure("timeout", str(error), TRY_AGAIN)
    if isinstance(error, openai.APIConnectionError):
        return Failure("connection", f"{error} {error.__cause__ or ''}".strip(), TRY_AGAIN)
    return Failure("malformed", f"{type(error).__name__}: {error}", TRY_AGAIN)


def without(secret, text):
    """A message that is fit to print and to keep: an endpoint may send the key back."""
    text = text.replace(secret, "[key]") if secret else text
    return text[:LONGEST_MESSAGE]
