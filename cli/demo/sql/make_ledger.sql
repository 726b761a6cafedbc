-- make_ledger: the demo's own book of what callers were told, for this transaction.
-- certain: the caller was told that it is admitted; else no answer came, and either is right.
CREATE TEMPORARY TABLE demo_ledger (
    user_id uuid NOT NULL,
    key text NOT NULL,
    line smallint NOT NULL,
    feature text,
    amount bigint,
    cost_micro bigint,
    verb text,
    certain boolean NOT NULL DEFAULT true
) ON COMMIT DROP
