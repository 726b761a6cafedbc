-- user_of: the id of the user whom the application calls so: a UUIDv5 (RFC 9562), as quota.values.parse_user_id.
-- SHA-1 is in no PostgreSQL without an extension, so it is here, as in FIPS 180-4.
CREATE OR REPLACE FUNCTION allotment_legacy.user_of(name text) RETURNS uuid LANGUAGE plpgsql IMMUTABLE STRICT AS $user_of$
DECLARE
    bits CONSTANT bigint := 4294967295;
    message bytea := decode('6f1d0c5e3b0a5a7c9d642f1f6a3f7c11', 'hex') || convert_to(name, 'UTF8');
    h bigint[] := ARRAY[1732584193, 4023233417, 2562383102, 271733878, 3285377520];
    w bigint[];
    a bigint; b bigint; c bigint; d bigint; e bigint; f bigint; k bigint; t bigint;
    hash text;
BEGIN
    message := message || '\x80'::bytea || decode(repeat('00', (119 - length(message) % 64) % 64), 'hex')
               || int8send(length(message)::bigint * 8);
    FOR block IN 0 .. length(message) / 64 - 1 LOOP
        FOR i IN 0 .. 15 LOOP
            t := block * 64 + i * 4;
            w[i] := (get_byte(message, t::int)::bigint << 24) | (get_byte(message, t::int + 1) << 16)
                    | (get_byte(message, t::int + 2) << 8) | get_byte(message, t::int + 3);
        END LOOP;
        FOR i IN 16 .. 79 LOOP
            t := w[i - 3] # w[i - 8] # w[i - 14] # w[i - 16];
            w[i] := ((t << 1) & bits) | (t >> 31);
        END LOOP;
        a := h[1]; b := h[2]; c := h[3]; d := h[4]; e := h[5];
        FOR i IN 0 .. 79 LOOP
            IF i < 20 THEN
                f := (b & c) | ((bits # b) & d); k := 1518500249;
            ELSIF i < 40 THEN
                f := b # c # d; k := 1859775393;
            ELSIF i < 60 THEN
                f := (b & c) | (b & d) | (c & d); k := 2400959708;
            ELSE
                f := b # c # d; k := 3395469782;
            END IF;
            t := ((((a << 5) & bits) | (a >> 27)) + f + e + k + w[i]) & bits;
            e := d; d := c; c := ((b << 30) & bits) | (b >> 2); b := a; a := t;
        END LOOP;
        h := ARRAY[(h[1] + a) & bits, (h[2] + b) & bits, (h[3] + c) & bits, (h[4] + d) & bits, (h[5] + e) & bits];
    END LOOP;
    hash := lpad(to_hex(h[1]), 8, '0') || lpad(to_hex(h[2]), 8, '0') || lpad(to_hex(h[3]), 8, '0') || lpad(to_hex(h[4]), 8, '0');
    -- The version and the variant of a UUIDv5.
    RETURN (substr(hash, 1, 12) || '5' || substr(hash, 14, 3)
            || to_hex((('x' || substr(hash, 17, 1))::bit(4)::int & 3) | 8) || substr(hash, 18))::uuid;
END
$user_of$
