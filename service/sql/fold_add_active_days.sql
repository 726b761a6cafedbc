-- fold_add_active_days: add `folded` to the days on which users did something; new ones go into `folded_days`.
WITH added AS (
    INSERT INTO user_active_days AS d (user_id, day, uses)
    SELECT user_id, local_day, sum(uses)
    FROM folded
    GROUP BY 1, 2
    HAVING sum(uses) > 0
    ORDER BY 1, 2
    ON CONFLICT (user_id, day) DO UPDATE SET uses = d.uses + excluded.uses
    RETURNING user_id, day, xmax = 0 AS is_new  -- a row that was updated has been locked, by its xmax
)
INSERT INTO folded_days SELECT user_id, day FROM added WHERE is_new
