"""Enrolment: how an organisation and the model owner come to know one another's keys, with one telephone call.

The organisation sends a **request** with its public keys; the owner compares its fingerprint by telephone, approves,
and sends back an **admission** with its own public key, a certificate and addresses; the organisation compares the
owner's fingerprint, and accepts. ``ENROLMENT.md`` beside this file specifies both documents.
"""
