-- act_as: have the rights of a role, and the rows of a user, until the transaction ends.
-- $1 text: role   $2 text: the user's id, or '' for none
SELECT set_config('allotment.user_id', $2, true), set_config('role', $1, true)
