-- Which hosts need a hop limit above 1, and have they got it?
SELECT host, max(hop_limit_needed) AS needed, argMaxIf(hop_limit_observed, at, hop_limit_observed IS NOT NULL) AS observed,
    argMax(container, hop_limit_needed) AS one_who_needs_it
FROM imds_exchanges
WHERE hop_limit_needed IS NOT NULL
GROUP BY host
HAVING needed > 1
ORDER BY host
