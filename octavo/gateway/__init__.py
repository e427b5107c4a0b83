"""One URL over many backends: routes, limits, reserves, judges, relays and records.

Knows no engine and no tensor library: what it serves is behind HTTP. Parts, from a request's
arrival to its record: `keys` (who calls), `limits` (how often), `policy` (where to), `budgets`
(may it cost that), `dispatch` (send, fail over), `judge` and `escalate` (is the answer good
enough), `relay` (to the client), and the ledger.
"""
