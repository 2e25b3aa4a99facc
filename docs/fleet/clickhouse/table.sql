-- The JSON lines of many hosts. What ships them gives three columns: host, position and line; the rest is read from the line.
CREATE TABLE imds_lines
(
    host LowCardinality(String),
    -- Grows from line to line of a host, e.g. nanoseconds since 1970: of several words on one exchange or finding the last one stands.
    position UInt64,
    line String CODEC(ZSTD(3)),
    type LowCardinality(String) MATERIALIZED JSONExtractString(line, 'type'),
    at DateTime64(9, 'UTC') MATERIALIZED parseDateTime64BestEffort(JSONExtractString(line, 'at'), 9, 'UTC'),
    -- What makes an exchange or a finding the same when it is told again.
    key String MATERIALIZED multiIf(
        type = 'exchange', concat(JSONExtractString(line, 'at'), ' ', JSONExtractRaw(line, 'id')),
        type = 'finding', concat(JSONExtractString(line, 'first'), ' ', JSONExtractString(line, 'rule'), ' ',
            JSONExtractString(line, 'container', 'id'), ' ', JSONExtractString(line, 'address')),
        concat(JSONExtractString(line, 'at'), ' ', toString(position)))
)
ENGINE = ReplacingMergeTree(position)
PARTITION BY toYYYYMM(at)
ORDER BY (type, host, key)
TTL toDateTime(at) + INTERVAL 13 MONTH;

CREATE VIEW imds_exchanges AS
SELECT
    host,
    at,
    JSONExtractString(line, 'imds') AS imds,
    JSONExtractString(line, 'path') AS path,
    JSONExtractUInt(line, 'status') AS status,
    JSONExtractBool(line, 'answered') AS answered,
    JSONExtractString(line, 'container', 'name') AS container,
    JSONExtractString(line, 'container', 'image') AS image,
    JSONExtractString(line, 'container', 'job', 'id') AS job,
    JSONExtractString(line, 'process', 'comm') AS comm,
    JSONExtractString(line, 'process', 'exe') AS exe,
    JSONExtractUInt(line, 'process', 'uid') AS uid,
    JSONExtract(line, 'hop_limit', 'observed', 'Nullable(UInt8)') AS hop_limit_observed,
    JSONExtract(line, 'hop_limit', 'needed', 'Nullable(UInt8)') AS hop_limit_needed
FROM imds_lines FINAL
WHERE type = 'exchange';

CREATE VIEW imds_findings AS
SELECT
    host,
    at,
    JSONExtractString(line, 'rule') AS rule,
    JSONExtractString(line, 'severity') AS severity,
    JSONExtractUInt(line, 'count') AS count,
    JSONExtractString(line, 'container', 'name') AS container,
    JSONExtractString(line, 'container', 'image') AS image,
    JSONExtractString(line, 'container', 'job', 'id') AS job,
    JSONExtract(line, 'waited_ms', 'Nullable(Float64)') AS waited_ms,
    JSONExtractString(line, 'summary') AS summary
FROM imds_lines FINAL
WHERE type = 'finding' AND JSONExtractUInt(line, 'count') > 0;
