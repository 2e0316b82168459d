//! The producer's side of the transactional outbox: an event is raised in the transaction that changes
//! the producer's own data, and goes out if and only if that commits.
//!
//! ```no_run
//! # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
//! use integration_hub::outbox::{self, RaisedEvent};
//!
//! let mut transaction = pool.begin().await?;
//! sqlx::query("INSERT INTO users (id) VALUES ('u1')").execute(&mut *transaction).await?;
//! let mut event = RaisedEvent::new("user.created".parse()?, "user-u1", &serde_json::json!({"user_id": "u1"}))?;
//! event.published = true;
//! outbox::publish(&mut transaction, &event).await?;
//! transaction.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! The database is prepared by `hub outbox setup`. Other languages call the same: on PostgreSQL
//! `SELECT hub_outbox.publish('{"type": "user.created", "stream": "user-u1", "data": {…}}')`, on SQLite
//! `INSERT INTO hub_outbox_publish (event) VALUES ('{…}')`.

pub use crate::domain::outbox::{Lane, RaisedEvent};
pub use crate::store::{Producer, PublishError, publish};
