-- Who took this role's credentials on any host that day? Last Tuesday is today() - ((toDayOfWeek(today()) + 4) % 7) - 1.
SELECT host, container, image, exe, uid, count() AS times, countIf(imds = 'v1') AS without_token, min(at) AS first, max(at) AS last
FROM imds_exchanges
WHERE toDate(at) = {day:Date} AND status = 200 AND answered
    AND endsWith(path, concat('/iam/security-credentials/', {role:String}))
GROUP BY host, container, image, exe, uid
ORDER BY first
