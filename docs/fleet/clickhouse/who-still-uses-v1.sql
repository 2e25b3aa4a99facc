-- Who still asks without a token, and would break with HttpTokens=required?
SELECT image, container, comm, uniqExact(host) AS hosts, count() AS times, max(at) AS last
FROM imds_exchanges
WHERE imds = 'v1'
GROUP BY image, container, comm
ORDER BY times DESC, container, comm
