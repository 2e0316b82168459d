fn verifies(id: &str, timestamp: &str, signature: &str, body: &[u8], secret: &str) -> bool {
    let key = BASE64_STANDARD.decode(secret.trim_start_matches("whsec_")).unwrap_or_default();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("any length is a key");
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    signature
        .split(' ')
        .filter_map(|one| BASE64_STANDARD.decode(one.strip_prefix("v1,")?).ok())
        .any(|one| mac.clone().verify_slice(&one).is_ok())
}
