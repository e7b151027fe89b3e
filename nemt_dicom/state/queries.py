"""The SQL of store.py, by name. The tables are explained there; migrations.py makes them."""

KNOWN = "SELECT id, blob, state FROM instances WHERE sop_instance_uid = ? AND content_digest = ?"
COUNT_DUPLICATE = "UPDATE instances SET duplicates = duplicates + 1 WHERE id = ?"
RIVAL = """
SELECT 1 FROM instances WHERE sop_instance_uid = ? AND content_digest <> ?
    AND (state IN ('queued', 'inferring', 'done')
        OR EXISTS (SELECT 1 FROM outputs WHERE outputs.instance = instances.id))
"""
QUEUE_AGAIN = """
UPDATE instances SET state = 'queued', blob = coalesce(?, blob), reason = NULL, detail = NULL,
    strikes = 0, interruptions = 0, alone = 1, lease = NULL, updated = ? WHERE id = ?
"""
ADD_INSTANCE = """
INSERT INTO instances (sop_instance_uid, sop_class_uid, content_digest, blob, state, reason, detail,
    received, updated, name) VALUES (?1, ?, ?, ?, ?, ?, ?, ?, ?, instance_name(?1))
ON CONFLICT (sop_instance_uid, content_digest) DO UPDATE SET blob = excluded.blob,
    sop_class_uid = excluded.sop_class_uid, state = excluded.state, reason = excluded.reason,
    detail = excluded.detail, received = excluded.received, updated = excluded.updated
"""
NEXT_ALONE = """
SELECT id FROM instances WHERE state = 'queued' AND alone = 1
    AND id NOT IN (SELECT value FROM json_each(?))
ORDER BY strikes + interruptions, id LIMIT 1
"""
NEXT_BATCH = """
SELECT id FROM instances WHERE state = 'queued' AND alone = 0
    AND id NOT IN (SELECT value FROM json_each(?))
ORDER BY id LIMIT ?
"""
TAKE = """
UPDATE instances SET state = 'inferring', lease = ?, attempts = attempts + 1,
    strikes = strikes + ?2, alone = ?2, updated = ? WHERE id = ?
"""
PUT_BACK = """
UPDATE instances SET state = 'queued', lease = NULL, strikes = strikes - alone,
    alone = max(alone, ?), updated = ? WHERE state = 'inferring' AND lease = ?
"""
END = """
UPDATE instances SET state = ?, reason = ?, detail = ?, summary = coalesce(?, summary),
    lease = NULL, updated = ?
WHERE id = ? AND state = 'inferring' AND lease = ?
"""
STRIKES = "SELECT strikes FROM instances WHERE id = ? AND state = 'inferring' AND lease = ?"
RETRY_ALONE = """
UPDATE instances SET state = 'queued', lease = NULL, alone = 1, reason = ?, detail = ?, updated = ?
WHERE id = ?
"""
TAKE_BACK_INTERRUPTED = """
UPDATE instances SET strikes = strikes - 1, interruptions = interruptions + 1
WHERE state = 'inferring' AND alone = 1
"""
BURY_CRASHERS = """
UPDATE instances SET state = 'dead', reason = 'worker_crash', lease = NULL, updated = ?
WHERE state = 'inferring' AND (strikes >= ? OR interruptions >= ?)
"""
RECOVER = """
UPDATE instances SET state = 'queued', lease = NULL, alone = 1, updated = ?
WHERE state = 'inferring'
"""
ADD_OUTPUT = """
INSERT INTO outputs (sop_instance_uid, instance, kind, sop_class_uid, study_instance_uid,
    transfer_syntax_uid, blob, name) VALUES (?1, ?, ?, ?, ?, ?, ?, instance_name(?1))
ON CONFLICT (sop_instance_uid) DO UPDATE SET blob = excluded.blob, superseded = 0
WHERE instance = excluded.instance
"""
ADD_DELIVERY = """
INSERT OR IGNORE INTO deliveries (output, destination, state, updated) VALUES (?, ?, 'pending', ?)
"""
SUPERSEDE = """
UPDATE outputs SET superseded = 1
WHERE instance = ? AND sop_instance_uid NOT IN (SELECT value FROM json_each(?))
"""
DROP_SUPERSEDED = """
DELETE FROM deliveries WHERE state <> 'sent' AND output IN (
    SELECT sop_instance_uid FROM outputs WHERE instance = ? AND superseded = 1
)
"""
DUE = """
SELECT d.attempts, d.rejections, o.kind, o.sop_class_uid, o.sop_instance_uid, o.study_instance_uid,
    o.transfer_syntax_uid, o.blob, i.sop_instance_uid
FROM deliveries d JOIN outputs o ON o.sop_instance_uid = d.output
    JOIN instances i ON i.id = o.instance
WHERE d.destination = ?1 AND d.state = 'pending' AND (d.retry_at <= ?2 OR d.retry_at > ?3)
    AND i.state = 'done'                      -- not while it is made again
ORDER BY d.retry_at, d.rowid LIMIT 1
"""
PENDING_SYNTAXES = """
SELECT DISTINCT o.sop_class_uid, o.transfer_syntax_uid
FROM deliveries d JOIN outputs o ON o.sop_instance_uid = d.output
WHERE d.destination = ? AND d.state = 'pending' ORDER BY 1, 2
"""
MARK_DELIVERY = """
UPDATE deliveries SET state = ?, attempts = attempts + 1, rejections = rejections + ?, status = ?,
    detail = ?, retry_at = ?, updated = ? WHERE output = ? AND destination = ? AND state = 'pending'
"""
# Trying again: ?1 is a JSON array of SOP Instance UIDs, or NULL for all. ?2 is a JSON array of
# destinations; in DONE_WITH it is a JSON array of blobs.

DEAD = """
SELECT id, sop_instance_uid, content_digest FROM instances
WHERE state = 'dead' AND (?1 IS NULL OR sop_instance_uid IN (SELECT value FROM json_each(?1)))
ORDER BY id DESC
"""
DONE_WITH = """
SELECT i.id, i.sop_instance_uid, i.content_digest FROM instances i
WHERE i.state = 'done' AND (?1 IS NULL OR i.sop_instance_uid IN (SELECT value FROM json_each(?1)))
    AND i.id IN (SELECT instance FROM outputs WHERE blob IN (SELECT value FROM json_each(?2)))
"""
_CHOSEN_OUTPUTS = """
SELECT o.sop_instance_uid FROM outputs o JOIN instances i ON i.id = o.instance
WHERE o.superseded = 0
    AND (?1 IS NULL OR i.sop_instance_uid IN (SELECT value FROM json_each(?1)))
"""
GIVEN_UP = f"""
SELECT DISTINCT o.blob, i.blob FROM deliveries d
    JOIN outputs o ON o.sop_instance_uid = d.output JOIN instances i ON i.id = o.instance
WHERE d.state = 'dead' AND d.output IN ({_CHOSEN_OUTPUTS})
"""  # noqa: S608 (of constants)
SEND_AGAIN = f"""
UPDATE deliveries SET state = 'pending', rejections = 0, retry_at = 0, updated = ?3
WHERE state = 'dead' AND destination IN (SELECT value FROM json_each(?2))
    AND output IN ({_CHOSEN_OUTPUTS})
"""  # noqa: S608 (of constants)
ADD_MISSING_DELIVERIES = f"""
INSERT OR IGNORE INTO deliveries (output, destination, state, updated)
SELECT chosen.sop_instance_uid, named.value, 'pending', ?3
FROM ({_CHOSEN_OUTPUTS}) AS chosen, json_each(?2) AS named
"""  # noqa: S608 (of constants)
LEFT_DELIVERIES = f"""
SELECT destination, count(*) FROM deliveries
WHERE state <> 'sent' AND destination NOT IN (SELECT value FROM json_each(?2))
    AND output IN ({_CHOSEN_OUTPUTS})
GROUP BY destination ORDER BY destination
"""  # noqa: S608 (of constants)

FIND = """
SELECT 1 AS rank, sop_instance_uid FROM instances WHERE sop_instance_uid = ?1 UNION ALL
SELECT 2, i.sop_instance_uid FROM outputs o JOIN instances i ON i.id = o.instance
    WHERE o.sop_instance_uid = ?1 UNION ALL
SELECT 3, sop_instance_uid FROM instances WHERE name = ?1 UNION ALL
SELECT 4, i.sop_instance_uid FROM outputs o JOIN instances i ON i.id = o.instance
    WHERE o.name = ?1
ORDER BY rank LIMIT 1
"""
INSTANCES = """
SELECT id, sop_instance_uid, sop_class_uid, content_digest, blob, state, reason, detail, received,
    updated, duplicates, attempts, summary FROM instances
"""
DELIVERIES = """
SELECT d.destination, d.output, o.kind, d.state, d.attempts, d.status, d.detail, d.updated
FROM deliveries d JOIN outputs o ON o.sop_instance_uid = d.output
WHERE o.instance = ? ORDER BY d.rowid
"""
DESTINATIONS = "SELECT DISTINCT destination FROM deliveries"
BLOBS = "SELECT blob FROM instances WHERE blob IS NOT NULL UNION SELECT blob FROM outputs"
COUNTS = "SELECT state, count(*) FROM instances GROUP BY state"
PENDING_DELIVERIES = """
SELECT destination, count(*) FROM deliveries WHERE state = 'pending' GROUP BY destination ORDER BY 1
"""
