use integration_hub::{serve, settings::Settings};
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
#[tokio::main]
async fn main() {
    tracing_subscriber::fmt().with_env_filter(std::env::var("RUST_LOG").unwrap_or("info".into())).init();
    let settings =
        Settings::load(std::env::var_os("HUB_CONFIG").as_deref().map(std::path::Path::new), &[]).unwrap();
    if let Err(error) = serve::run(settings, serve::ServeOptions::default()).await {
        eprintln!("error: {error}");
        std::process::exit(1)
    }
}
