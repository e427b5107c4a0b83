"""How the ledger's schema came to be: alembic's revisions, run by `octavo.ledger.migrate`.

A revision says what it does in its own words and never imports `schema.py`, which goes on changing.
After adding one, name it in `octavo.ledger.database.REVISIONS`.
"""
