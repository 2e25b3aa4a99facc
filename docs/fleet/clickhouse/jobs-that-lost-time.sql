-- Which jobs waited for tokens that never came, and how long? Containers without a job stand for themselves.
SELECT host, if(job = '', container, job) AS who, round(max(waited_ms)) AS lost_ms, groupUniqArray(rule) AS rules
FROM imds_findings
WHERE waited_ms > 0
GROUP BY host, who
ORDER BY host, lost_ms DESC, who
