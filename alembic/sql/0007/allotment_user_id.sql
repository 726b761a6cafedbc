-- allotment_user_id: whose rows a member of allotment_user sees; null, and so no row, where nobody has said.
-- Said for a transaction: set_config('allotment.user_id', '...', true), see service/identity.py
CREATE FUNCTION allotment_user_id() RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE
RETURN nullif(current_setting('allotment.user_id', true), '')::uuid
